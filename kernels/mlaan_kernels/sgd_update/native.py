"""The update through the compiled operator mlaan::sgd_update (csrc/sgd_update.cpp, _cpu.cpp, _cuda.cu)."""

import functools
from collections.abc import Callable, Sequence

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
    """See `mlaan_kernels.sgd_update.sgd_update`; to be called without gradient mode, the library loaded."""
    skipped = torch.empty((), dtype=torch.int32, device=params[0].device) if check_finite else None
    twin_tensors = [twin.tensor for twin in twins]
    try:
        _operator()(
            params,
            grads,
            momenta,
            twin_tensors,
            [twin.param for twin in twins],
            [twin.keep for twin in twins],
            learning_rate,
            momentum,
            nesterov,
            weight_decay,
            inverse_scale,
            skipped,
        )
    except RuntimeError:
        # The operator refuses whatever does not fit, before it writes. Words for people cost time, so they
        # are looked for only now.
        check_tensors(params, grads, momenta, twins, momentum)
        raise
    # As after any in-place change: a backward pass that still needs the old values must raise.
    torch.autograd.graph.increment_version([*params, *(momenta if momentum else ()), *twin_tensors])
    return skipped


@functools.cache
def _operator() -> Callable[..., None]:
    # Fake tensors: the operator only changes tensors that it is given.
    torch.library.register_fake("mlaan::sgd_update", lambda *arguments: None)
    return torch.ops.mlaan.sgd_update.default
