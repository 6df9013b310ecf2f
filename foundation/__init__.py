"""The teacher: the HSTU engine, the foundation model, and what publishes its embeddings."""
