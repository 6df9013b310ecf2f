"""The engine of one machine: sorted memory-mapped segments below an atomic manifest, for any number of processes."""
