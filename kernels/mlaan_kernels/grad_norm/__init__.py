"""The Euclidean norm of all gradients together, and the coefficient that clips them by it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan_kernels.grad_norm import native, reference
from mlaan_kernels.grad_norm.arguments import check_grads
from mlaan_kernels.library import Implementation, use_native

__all__ = ["clip_coefficient", "grad_norm"]


@torch.no_grad()
def grad_norm(
    grads: Sequence[Tensor], inverse_scale: float = 1.0, *, implementation: Implementation = "auto"
) -> tuple[Tensor, Tensor]:
    """inverse_scale times the L2 norm over all elements of all gradients, and whether each of them is finite.

    The sum is taken in float64 in a fixed order: the same gradients give the same bits. Nothing waits for the
    device, and on CUDA the work goes to the current stream.

    Args:
        grads: float32, float64, bfloat16 or float16, all alike, on one device, of any shapes; a gradient with gaps
            or overlaps in memory is copied first.
        inverse_scale: 1 / loss scale.
        implementation: "auto", "reference" or "native"; see `mlaan_kernels.library`.

    Returns:
        (norm, finite), of shape () on the device: float32, and bool for the `finite` of an update. The norm is inf
        or NaN where finite is False, and inf where it is too large for a float32.

    Raises:
        ValueError: dtypes or devices differ or there is no such form; the message names the gradient.
        mlaan_kernels.library.NativeUnavailableError: "native" was asked for and cannot run.
    """
    if not grads:
        return torch.zeros(()), torch.ones((), dtype=torch.bool)
    check_grads(grads)
    module = native if use_native("grad_norm", implementation, grads[0].device) else reference
    return module.grad_norm(grads, inverse_scale)


@torch.no_grad()
def clip_coefficient(norm: Tensor, max_norm: float) -> Tensor:
    """min(1, max_norm / (norm + 1e-6)), the `grad_scale` that clips gradients of this norm to max_norm.

    As in torch.nn.utils.clip_grad_norm_, but the gradients are scaled by the update that reads them. NaN stays NaN:
    give the update the `finite` that came with the norm.

    Args:
        norm: one float32 on any device.
        max_norm: the largest norm that is left alone, > 0.

    Returns:
        A float32 tensor of the norm's shape, on its device.

    Raises:
        ValueError: max_norm is not above 0.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}: it must be above 0")
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
