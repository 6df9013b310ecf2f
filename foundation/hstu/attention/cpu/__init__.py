"""The compiled kernels of HSTU attention for CPUs, and how they are compiled."""
