"""Interaction networks, one file each: from a candidate's features to a hidden state."""
