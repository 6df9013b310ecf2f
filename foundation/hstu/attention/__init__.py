"""HSTU attention over jagged sequences: one signature, one file per backend."""
