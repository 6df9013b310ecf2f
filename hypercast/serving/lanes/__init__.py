"""The three tiers, each in a thread of its own, and the ladder between them."""
