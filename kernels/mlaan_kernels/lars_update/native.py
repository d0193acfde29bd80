"""The update through the compiled operator mlaan::lars_update (csrc/lars_update.h and its neighbours)."""

from torch import Tensor

from mlaan_kernels.updates import native
from mlaan_kernels.updates.arguments import Update


def lars_update(update: Update, *, momentum: float, weight_decay: float, trust: float) -> Tensor | None:
    """See `mlaan_kernels.lars_update.lars_update`."""
    return native.run("lars_update", update, momentum, weight_decay, trust)
