"""What happened: the logs, windows of event time, histories as of a time, and jagged request batches."""
