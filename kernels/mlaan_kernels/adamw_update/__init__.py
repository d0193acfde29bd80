"""AdamW (Loshchilov and Hutter 2019), with unscaling, a finite check and the move of the EMA twins."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan_kernels.adamw_update import native, reference
from mlaan_kernels.library import Implementation, use_native
from mlaan_kernels.updates.arguments import Twin, Update, check_adam

__all__ = ["Twin", "adamw_update"]


@torch.no_grad()
def adamw_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    twins: Sequence[Twin],
    *,
    learning_rate: float | Tensor,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    step: float | Tensor,
    masters: Sequence[Tensor] = (),
    inverse_scale: float = 1.0,
    grad_scale: Tensor | None = None,
    check_finite: bool = False,
    finite: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor | None:
    """Updates parameters, moments and twins in place; the maths is in this folder's README.

    The rule is that of torch.optim.AdamW without amsgrad. Twins move first,
    towards the weights of before the step. Nothing may overlap in memory, except that a gradient is only read.
    Nothing waits for the device, and on CUDA the work goes to the current stream.

    Args:
        params: float32 or float64, all alike, on one device, each dense in memory (any order of dimensions);
            or bfloat16 with masters.
        grads: one per parameter, of its shape; float64 for float64 params, else float32, bfloat16 or float16 (all
            alike). Strides may differ from the parameter's, at the price of a copy.
        first_moments: one per parameter, of its shape, strides and dtype (float32 with masters), from zeros.
        second_moments: likewise.
        twins: none, one or several per parameter, of its shape, strides and dtype (float32 with masters).
        learning_rate: step size; as one float32 on the device it may change under a captured CUDA graph.
        betas: shares of the old moments that stay, in [0, 1).
        epsilon: added to the root of the corrected second moment.
        weight_decay: learning_rate * weight_decay is the share of the weight that goes.
        step: the number of this update, counting from 1; as one float32 on the device it may change under a
            captured CUDA graph (add 1 before the update, take off the returned flag after it).
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
    check_adam(betas, epsilon, step)
    update = Update(
        params,
        grads,
        {"first_moments": first_moments, "second_moments": second_moments},
        twins,
        learning_rate,
        step=step,
        masters=masters,
        inverse_scale=inverse_scale,
        grad_scale=grad_scale,
        check_finite=check_finite,
        finite=finite,
    )
    if not params:
        return update.of_nothing()
    module = native if use_native("adamw_update", implementation, params[0].device) else reference
    return module.adamw_update(update, betas=betas, epsilon=epsilon, weight_decay=weight_decay)
