"""The update through the compiled operator mlaan::sgd_update (csrc/sgd_update.h and its neighbours)."""

from torch import Tensor

from mlaan_kernels.updates import native
from mlaan_kernels.updates.arguments import Update


def sgd_update(update: Update, *, momentum: float, nesterov: bool, weight_decay: float) -> Tensor | None:
    """See `mlaan_kernels.sgd_update.sgd_update`."""
    return native.run("sgd_update", update, momentum, nesterov, weight_decay)
