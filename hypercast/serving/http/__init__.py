"""The front: bodies, tokens, limits, connections."""
