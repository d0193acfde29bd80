"""LARS (You, Gitman and Ginsburg 2017), with unscaling, a finite check and the move of the EMA twins."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan_kernels.lars_update import native, reference
from mlaan_kernels.library import Implementation, use_native
from mlaan_kernels.updates.arguments import Twin, Update, check_at_least_zero

__all__ = ["Twin", "lars_update"]


@torch.no_grad()
def lars_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    twins: Sequence[Twin],
    *,
    learning_rate: float | Tensor,
    momentum: float,
    weight_decay: float,
    trust: float,
    excluded: Sequence[bool] = (),
    masters: Sequence[Tensor] = (),
    inverse_scale: float = 1.0,
    grad_scale: Tensor | None = None,
    check_finite: bool = False,
    finite: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor | None:
    """Updates parameters, momenta and twins in place; the maths is in this folder's README.

    Each tensor has a learning rate of its own, by the norms of its weight and gradient. Twins move first,
    towards the weights of before the step. Nothing may overlap in memory, except that a gradient is only read.
    Nothing waits for the device, and on CUDA the work goes to the current stream.

    Args:
        params: float32 or float64, all alike, on one device, each dense in memory (any order of dimensions);
            or bfloat16 with masters.
        grads: one per parameter, of its shape; float64 for float64 params, else float32, bfloat16 or float16 (all
            alike). Strides may differ from the parameter's, at the price of a copy.
        momenta: one per parameter, of its shape, strides and dtype (float32 with masters), from zeros; may be empty
            if momentum is 0.
        twins: none, one or several per parameter, of its shape, strides and dtype (float32 with masters).
        learning_rate: step size; as one float32 on the device it may change under a captured CUDA graph.
        momentum: share of the old momentum that stays, >= 0; 0 leaves the momenta alone. They hold steps: the
            learning rate is inside.
        weight_decay: times the weight, added to the unscaled gradient.
        trust: the paper's eta, the length of a step at learning rate 1 over the length of the weight.
        excluded: one bool per parameter, True: no decay and a ratio of 1 (biases, BatchNorm); empty: none.
        masters: float32 copies of bfloat16 params, of their shapes and strides: the update runs on them.
        inverse_scale: gradients are multiplied by it first: 1 / loss scale.
        grad_scale: one float32 on the device by which they are multiplied too, such as a `clip_coefficient`.
        check_finite: look for inf and NaN in the gradients as they come in, and skip everything if any.
        finite: one bool on the device; where it is False everything is skipped.
        implementation: "auto", "reference" or "native"; see `mlaan_kernels.library`.

    Returns:
        With check_finite or finite an int32 tensor of shape () on the device: 1 if the update was skipped,
        else 0. Without them None.

    Raises:
        ValueError: lengths, shapes, strides, dtypes, devices or numbers do not fit; the message names the culprit.
        mlaan_kernels.library.NativeUnavailableError: "native" was asked for and cannot run.
    """
    check_at_least_zero(momentum=momentum, weight_decay=weight_decay, trust=trust)
    update = Update(
        params,
        grads,
        {"momenta": momenta},
        twins,
        learning_rate,
        uses_states=momentum != 0,
        excluded=excluded,
        masters=masters,
        inverse_scale=inverse_scale,
        grad_scale=grad_scale,
        check_finite=check_finite,
        finite=finite,
    )
    if not params:
        return update.of_nothing()
    module = native if use_native("lars_update", implementation, params[0].device) else reference
    return module.lars_update(update, momentum=momentum, weight_decay=weight_decay, trust=trust)
