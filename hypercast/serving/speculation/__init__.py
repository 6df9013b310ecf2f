"""Speculation: vectors of the pairs that will probably be asked for next, computed before anybody asks."""
