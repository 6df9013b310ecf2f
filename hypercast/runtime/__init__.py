"""Runs a platform: the order of work in a window, in one process or in Ray actors."""
