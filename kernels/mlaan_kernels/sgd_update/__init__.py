"""SGD with momentum, weight decay, gradient unscaling, a finite check and the move of the EMA twins."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan_kernels.library import Implementation, use_native
from mlaan_kernels.sgd_update import native, reference
from mlaan_kernels.sgd_update.arguments import Twin, check_scalars, check_tensors

__all__ = ["Twin", "sgd_update"]


@torch.no_grad()
def sgd_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    twins: Sequence[Twin],
    *,
    learning_rate: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    inverse_scale: float = 1.0,
    check_finite: bool = False,
    implementation: Implementation = "auto",
) -> Tensor | None:
    """Updates parameters, momenta and twins in place; the maths is in this folder's README.

    The rule is that of torch.optim.SGD with dampening 0, momenta starting at zero. Twins move first, towards
    the parameter's value of before the step. Nothing may overlap in memory, except that a gradient is only
    read. Nothing waits for the device, and on CUDA the work goes to the current stream.

    Args:
        params: float32 or float64, all alike, on one device, each dense in memory (any order of dimensions).
        grads: one per parameter, of its shape and dtype, or bfloat16 or float16 for float32 parameters (all
            alike); strides may differ from the parameter's, at the price of a copy.
        momenta: one per parameter, of its shape, strides and dtype; may be empty if momentum is 0.
        twins: none, one or several per parameter, of its shape, strides and dtype.
        learning_rate: step size.
        momentum: share of the old momentum that stays, >= 0; 0 leaves the momenta alone.
        nesterov: step along gradient + momentum * momenta; needs momentum > 0.
        weight_decay: times the parameter, added to the unscaled gradient.
        inverse_scale: gradients are multiplied by it first: 1 / loss scale.
        check_finite: look for inf and NaN in the gradients as they come in, and skip everything if any.
        implementation: "auto", "reference" or "native"; see `mlaan_kernels.library`.

    Returns:
        With check_finite an int32 tensor of shape () on the device: 1 if the update was skipped, else 0.
        Without it None.

    Raises:
        ValueError: lengths, shapes, strides, dtypes or devices do not fit; the message names the tensor.
        mlaan_kernels.library.NativeUnavailableError: "native" was asked for and cannot run.
    """
    check_scalars(momentum, nesterov)
    if not params:
        check_tensors(params, grads, momenta, twins, momentum)
        return torch.zeros((), dtype=torch.int32) if check_finite else None
    module = native if use_native("sgd_update", implementation, params[0].device) else reference
    return module.sgd_update(
        params,
        grads,
        momenta,
        twins,
        learning_rate=learning_rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        inverse_scale=inverse_scale,
        check_finite=check_finite,
    )
