"""What is known, and the machinery around it: registry, store, training loop, runtime, command line."""
