"""The HSTU engine: attention, layers, embedding tables."""
