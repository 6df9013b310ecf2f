"""Scoring requests as they come: features as of now, the foundation model, experts, and the service around them."""
