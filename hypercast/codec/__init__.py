"""How vectors become bytes, and Arrow columns."""
