"""The engine for many machines: a Valkey or Redis server, or a cluster of them."""
