"""The update through the compiled operator mlaan::adamw_update (csrc/adamw_update.h and its neighbours)."""

from torch import Tensor

from mlaan_kernels.updates import native
from mlaan_kernels.updates.arguments import Update


def adamw_update(update: Update, *, betas: tuple[float, float], epsilon: float, weight_decay: float) -> Tensor | None:
    """See `mlaan_kernels.adamw_update.adamw_update`."""
    return native.run("adamw_update", update, *betas, epsilon, weight_decay)
