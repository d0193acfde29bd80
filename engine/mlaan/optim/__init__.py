"""Optim: what moves weights and twins, and the learning rate it uses."""

from mlaan.optim.optimizer import Optimizer
from mlaan.optim.states import state_bytes

__all__ = ["Optimizer", "state_bytes"]
