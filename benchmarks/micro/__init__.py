"""Operators timed one by one: fused, in plain PyTorch, and compiled."""
