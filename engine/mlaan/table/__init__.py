"""Rows of configs times seeds: which runs there are, training the missing ones, and ours beside the published."""
