"""Metrics: one file each, a pure function and the class that accumulates it."""
