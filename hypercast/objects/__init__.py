"""What the registry is made of: immutable contents by digest, weights put together from them, small checked records."""
