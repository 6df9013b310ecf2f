"""Formats of the field: for a folder of official files, the mapping that imports it. One file a format."""
