"""The update in plain PyTorch, on any device: the judge in tests, and the fallback without libraries."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan_kernels.sgd_update.arguments import Twin, check_tensors


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
    inverse_scale: float,
    check_finite: bool,
) -> Tensor | None:
    """See `mlaan_kernels.sgd_update.sgd_update`; to be called without gradient mode."""
    check_tensors(params, grads, momenta, twins, momentum)
    finite: Tensor | None = None
    if check_finite:
        finite = torch.stack([grad.isfinite().all() for grad in grads]).all()

    def put(target: Tensor, value: Tensor) -> None:
        # A choice per element instead of a branch: nothing has to wait for the device.
        target.copy_(value if finite is None else torch.where(finite, value, target))

    for twin in twins:
        put(twin.tensor, twin.keep * twin.tensor + (1 - twin.keep) * params[twin.param])
    for index, param in enumerate(params):
        slope = grads[index].to(param.dtype) * inverse_scale + weight_decay * param
        if momentum != 0:
            moved = momentum * momenta[index] + slope
            put(momenta[index], moved)
            slope = slope + momentum * moved if nesterov else moved
        put(param, param - learning_rate * slope)
    return None if finite is None else (~finite).to(torch.int32)
