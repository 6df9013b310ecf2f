"""Measurements: ``python -m benchmarks NAME [--json FILE]``. Ratios compare things measured in turn in one process."""
