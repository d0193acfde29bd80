"""Optim: what moves weights and twins, and the learning rate it uses."""
