"""Embeddings by key: the columnar log that is published offline, and stores for point reads online."""
