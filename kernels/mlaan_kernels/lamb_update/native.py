"""The update through the compiled operator mlaan::lamb_update (csrc/lamb_update.h and its neighbours)."""

from torch import Tensor

from mlaan_kernels.updates import native
from mlaan_kernels.updates.arguments import Update


def lamb_update(update: Update, *, betas: tuple[float, float], epsilon: float, weight_decay: float) -> Tensor | None:
    """See `mlaan_kernels.lamb_update.lamb_update`."""
    return native.run("lamb_update", update, *betas, epsilon, weight_decay)
