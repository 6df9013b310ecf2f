"""The students: one light model per surface."""
