"""Logs that are still being written: messages, event-time windows, sealing, and Kafka at either end."""
