"""Fewer bits for serving: a kernel per layer, chosen by measurement within an accuracy bound, and watched live."""
