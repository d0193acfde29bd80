"""Training BatchNorm, an optional residual and ReLU on channels_last maps, in few passes over memory.

The layer comes in parts, so that neighbours can take some over (a convolution's epilogue gives the statistics, its
prologue normalises) and a block's backward can carry several cotangents at once; `batchnorm_act` is the whole layer.
The maths is in this folder's README.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlaan_kernels.batchnorm_act import reference
from mlaan_kernels.batchnorm_act.arguments import (
    aligned_norms,
    check_cotangents,
    check_layers,
    check_like,
    check_map,
    check_stack,
    count_rows,
    output_like,
)
from mlaan_kernels.choice import Implementation, use_triton
from mlaan_kernels.norm import Norm, Partials

__all__ = [
    "batch_norm",
    "batchnorm_act",
    "input_grad",
    "merge",
    "normalise",
    "reduce",
    "running_norm",
    "statistics",
]


def statistics(c: Tensor, *, slices: int = 1, implementation: Implementation = "auto") -> Partials:
    """Sums over tiles of a map, one read of it.

    Args:
        c: (N, C, H, W), a convolution's output.
        slices: S parts of the batch, one after the other, each with statistics of its own.

    Raises:
        ValueError: c is no map or does not divide into the slices, or a slice has one value per channel, which has no
            variance.
    """
    check_map("c", c)
    rows = count_rows(c, slices)
    if not use_triton("batchnorm_act", implementation, c):
        return reference.statistics(c, slices)
    from mlaan_kernels.batchnorm_act import autograd, triton

    sums, squares = autograd.statistics(c.contiguous(memory_format=torch.channels_last), slices)
    return Partials(sums, squares, triton.tile_rows(rows, slices, c.shape[1]), rows)


def merge(
    partials: Partials,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    eps: float = 1e-5,
    momentum: float = 0.1,
    implementation: Implementation = "auto",
) -> Norm:
    """Batch statistics out of partial sums, and the move of the running ones.

    Args:
        weight, bias: (C,).
        running_mean, running_var: (C,), moved in place towards the batch's mean and unbiased variance, once for each
            slice in order; None leaves them out.
        eps, momentum: as in torch.nn.BatchNorm2d.
    """
    sums, squares, tile, rows = partials
    if not use_triton("batchnorm_act", implementation, sums):
        return reference.make_norm(partials, weight, bias, running_mean, running_var, eps, momentum)
    from mlaan_kernels.batchnorm_act import autograd

    numbers = autograd.make_norm(sums, squares, weight.float(), running_mean, running_var, tile, rows, eps, momentum)
    return Norm(numbers[0], numbers[1], numbers[2], bias.float())


def running_norm(running_mean: Tensor, running_var: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Norm:
    """What BatchNorm does in evaluation mode: a Norm of one slice out of the running statistics (C,)."""
    numbers = (running_mean, running_var, weight, bias)
    mean, variance, weight, bias = (x if x.dtype == torch.float64 else x.float() for x in numbers)
    invstd = (variance + eps).rsqrt()
    return Norm(mean[None], invstd[None], (weight * invstd)[None], bias)


def batch_norm(
    norm: nn.BatchNorm2d | Sequence[nn.BatchNorm2d],
    c: Tensor | Partials,
    *,
    slices: int = 1,
    implementation: Implementation = "auto",
) -> Norm:
    """The Norm of a BatchNorm2d for a convolution's output, or for the sums that the convolution gave.

    As the layer itself: in training mode, or without running statistics, the batch's; its running statistics and
    counter move in training mode if it tracks them.

    Args:
        norm: or several without running statistics and with equal eps, whose channels lie side by side.

    Raises:
        ValueError: as `statistics`; or a layer for other channels, without weight and bias, or with momentum = None; or
            several with running statistics or different eps.
    """
    norms = [norm] if isinstance(norm, nn.BatchNorm2d) else list(norm)
    check_layers(norms, c.sums.shape[2] if isinstance(c, Partials) else c.shape[1])
    norm = norms[0]
    if not (norm.training or norm.running_mean is None):
        assert norm.running_var is not None
        weight, bias = norm.weight.detach(), norm.bias.detach()
        return running_norm(norm.running_mean, norm.running_var, weight, bias, eps=norm.eps)
    partials = c if isinstance(c, Partials) else statistics(c, slices=slices, implementation=implementation)
    moves = norm.training and norm.track_running_stats and norm.running_mean is not None
    if moves and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(partials.sums.shape[0])
    weight, bias = norm.weight.detach(), norm.bias.detach()
    if len(norms) > 1:
        weight, bias = (torch.cat([getattr(one, name).detach() for one in norms]) for name in ("weight", "bias"))
    return merge(
        partials,
        weight,
        bias,
        norm.running_mean if moves else None,
        norm.running_var if moves else None,
        eps=norm.eps,
        momentum=norm.momentum or 0.0,
        implementation=implementation,
    )


def normalise(
    c: Tensor,
    norm: Norm,
    residual: Tensor | None = None,
    residual_norm: Norm | None = None,
    *,
    relu: bool = True,
    write: bool = True,
    pool: bool = False,
    members: int = 1,
    width: int | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor | None]:
    """y = relu((c - mean) * scale + bias + residual), one read of each input and one write.

    Args:
        c: (N, C, H, W).
        residual: like y, or None.
        residual_norm: normalises the residual, which is like c then, first: a shortcut's own BatchNorm. Of the two
            norms one may have one slice where the other has S.
        relu: False leaves the ReLU out.
        write: False: y is not wanted, only its mean (`pool`); an empty tensor takes its place.
        pool: also give y's mean over the pixels, from the same pass.
        members, width: 2 layers side by side that are added behind their ReLUs: of each `members` runs of `width`
            channels of c one of y. A plain residual is each member's.

    Returns:
        y (N, C, H, W) of c's dtype, channels_last if c is or Triton runs; and the mean (N, C) of y as it was rounded,
        float32 or float64, or None.

    Raises:
        ValueError: shapes or dtypes that do not fit; or neither y nor its mean is wanted.
    """
    check_map("c", c)
    check_like(output_like(c, members, width) if residual_norm is None else c, residual=residual)
    norm, residual_norm = aligned_norms(c, norm, residual, residual_norm)
    if not (write or pool):
        raise ValueError("write = False and pool = False leave nothing to compute: ask for one")
    if members > 1 and not relu:
        raise ValueError(f"members = {members} are added behind their ReLUs: relu = False has none")
    width = width or c.shape[1]
    if not use_triton("batchnorm_act", implementation, c):
        y, pooled = reference.forward(c, norm, residual, residual_norm, relu, pool, members, width)
        return y if write else c.new_empty(0), pooled
    from mlaan_kernels.batchnorm_act import autograd

    other = (
        (None, None, None) if residual_norm is None else (residual_norm.mean, residual_norm.scale, residual_norm.bias)
    )
    residual = None if residual is None else _rows(residual)
    flags = (relu, write, pool, members, width)
    found = autograd.forward(_rows(c), norm.mean, norm.scale, norm.bias, residual, *other, *flags)
    return found[0] if write else c.new_empty(0), found[-1] if pool else None


def reduce(
    dense: Sequence[Tensor | None],
    pooled: Sequence[Tensor | None],
    c: Tensor,
    norm: Norm,
    *,
    residual: Tensor | None = None,
    residual_norm: Norm | None = None,
    relu: bool = True,
    write: bool = True,
    members: int = 1,
    width: int | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """The first half of the backward, for one or two cotangents in one read of what was saved.

    Args:
        dense: for each of G cotangents its dense part like y, or None.
        pooled: for each its part with respect to the mean of y over pixels, or None; never spread out in memory.
        c, norm, residual, residual_norm, relu, members, width: as in the forward. The mask is rebuilt from them, so
            that y need not be kept.
        write: False where the cotangents are dense alone and `input_grad` masks them itself: dz is not written.

    Returns:
        sums (G, S, K, C): of dz, of dz times the normalised c, and (K = 3) of dz times the normalised residual; and dz
        (G * N, C, H, W), what comes in before the ReLU: also the residual's cotangent. Without `write` it is empty.

    Raises:
        ValueError: more than two cotangents, or none, or one without parts; shapes or dtypes that do not fit; or
            `write` = False where `input_grad` could not mask.
    """
    check_map("c", c)
    out = output_like(c, members, width)
    check_cotangents(out, dense, pooled, residual is None and members == 1, write)
    check_like(out if residual_norm is None else c, residual=residual)
    norm, residual_norm = aligned_norms(c, norm, residual, residual_norm)
    width = width or c.shape[1]
    if not use_triton("batchnorm_act", implementation, c):
        sums, dz = reference.reduce(dense, pooled, c, norm, residual, residual_norm, relu, members, width)
        return sums, dz if write else c.new_empty(0)
    from mlaan_kernels.batchnorm_act import autograd

    other = (None,) * 4
    if residual_norm is not None:
        other = (residual_norm.mean, residual_norm.invstd, residual_norm.scale, residual_norm.bias)
    found = autograd.reduce(
        [None if d is None else _rows(d) for d in dense],
        [None if p is None else p.float().contiguous() for p in pooled],
        *(_rows(c), norm.mean, norm.invstd, norm.scale, norm.bias),
        *(None if residual is None else _rows(residual), *other, relu, write, members, width),
    )
    return found[0], found[1] if write else c.new_empty(0)


def input_grad(
    dz: Tensor,
    c: Tensor,
    norm: Norm,
    sums: Tensor | None,
    *,
    relu: bool = False,
    inplace: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """The second half of the backward: the gradient of c.

    Args:
        dz: (G * N, C, H, W), as `reduce` gave it.
        c: (N, C, H, W).
        sums: (G, S, 2, C), as `reduce` gave them; None where the statistics were running ones, constants.
        relu: dz is not masked yet.
        inplace: dz may be overwritten with the result.

    Returns:
        dc (G * N, C, H, W).

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    check_map("c", c)
    aligned_norms(c, norm)
    check_stack(dz, c, norm, sums)
    if not use_triton("batchnorm_act", implementation, c):
        return reference.input_grad(dz, c, norm, sums, relu)
    from mlaan_kernels.batchnorm_act import autograd

    dz = _rows(dz)
    out = dz if inplace else torch.empty_like(dz)
    sums = None if sums is None else sums.contiguous()
    autograd.input_grad(out, dz, _rows(c), norm.mean, norm.invstd, norm.scale, norm.bias, sums, relu)
    return out


def batchnorm_act(
    c: Tensor,
    norm: nn.BatchNorm2d,
    residual: Tensor | None = None,
    *,
    relu: bool = True,
    implementation: Implementation = "auto",
) -> Tensor:
    """relu(norm(c) + residual), the whole layer, differentiable by c, the norm's weight and bias, and the residual.

    Keeps c, the residual if there is one and a ReLU, and numbers per channel; eager PyTorch also keeps the output.

    Args:
        c: (N, C, H, W), float32, bfloat16, float16, or float64 for the reference.
        norm: in training mode its running statistics move.
        residual: like c, or None.
        implementation: "auto", "reference" or "triton"; see `mlaan_kernels.choice`.

    Returns:
        (N, C, H, W) of c's dtype; channels_last if c is, or where Triton runs.

    Raises:
        ValueError: shapes or dtypes that do not fit; a norm that is no BatchNorm2d, is not affine, has no momentum or
            is for other channels; one value per channel in training mode.
    """
    from mlaan_kernels.batchnorm_act.function import BatchNormAct

    if not isinstance(norm, nn.BatchNorm2d):
        raise ValueError(f"norm is a {type(norm).__name__}: give an nn.BatchNorm2d")

    return BatchNormAct.apply(c, norm.weight, norm.bias, residual, norm, relu, implementation)


def _rows(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
