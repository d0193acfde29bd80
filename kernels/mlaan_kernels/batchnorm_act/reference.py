"""BatchNorm + residual + ReLU in plain PyTorch: the judge in tests, and the path without Triton.

Arithmetic is in float32, in float64 for float64 maps; maps keep their dtype and memory format.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan_kernels.norm import Norm, Partials


def statistics(c: Tensor, slices: int) -> Partials:
    """One tile for each slice."""
    parts = _wide(c).unflatten(0, (slices, -1))
    sums = parts.sum((1, 3, 4))
    rows = parts[0, :, 0].numel()
    squares = (parts - (sums / rows)[:, None, :, None, None]).square().sum((1, 3, 4))
    return Partials(sums[:, None], squares[:, None], rows, rows)


def make_norm(
    partials: Partials,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    momentum: float,
) -> Norm:
    """Merges tiles by Chan, Golub and LeVeque's formula (1979)."""
    sums, squares, tile, rows = partials
    counts = torch.arange(sums.shape[1], device=sums.device).mul(-tile).add(rows).clamp(max=tile)[:, None]
    mean = sums.sum(1) / rows
    square = (squares + counts * (sums / counts - mean[:, None]).square()).sum(1)
    if running_mean is not None and running_var is not None:
        for s in range(len(mean)):
            running_mean.lerp_(mean[s].to(running_mean.dtype), momentum)
            running_var.lerp_((square[s] / (rows - 1)).to(running_var.dtype), momentum)
    invstd = (square / rows + eps).rsqrt()
    return Norm(mean, invstd, weight.to(mean.dtype) * invstd, bias.to(mean.dtype))


def normalise(c: Tensor, norm: Norm) -> Tensor:
    """(c - mean) * scale + bias, not rounded to c's dtype."""
    return (_wide(c) - _over(norm.mean, c)) * _over(norm.scale, c) + _wide(norm.bias)[:, None, None]


def forward(
    c: Tensor,
    norm: Norm,
    residual: Tensor | None,
    residual_norm: Norm | None,
    relu: bool,
    pool: bool,
    members: int,
    width: int,
) -> tuple[Tensor, Tensor | None]:
    """y, and the mean of each image's y."""
    z = _before_relu(c, norm, residual, residual_norm, members, width)
    z = z.relu_() if relu else z
    if members > 1:
        z = z.unflatten(1, (-1, members, width)).sum(2).flatten(1, 2)
    y = z.to(c.dtype)
    return y, _wide(y).mean((2, 3)) if pool else None


def reduce(
    dense: Sequence[Tensor | None],
    pooled: Sequence[Tensor | None],
    c: Tensor,
    norm: Norm,
    residual: Tensor | None,
    residual_norm: Norm | None,
    relu: bool,
    members: int,
    width: int,
) -> tuple[Tensor, Tensor]:
    """Sums (G, S, K, C), and dz (G * N, C, H, W)."""
    dead = _before_relu(c, norm, residual, residual_norm, members, width) <= 0 if relu else None
    normal = [(_wide(c) - _over(norm.mean, c)) * _over(norm.invstd, c)]
    if residual is not None and residual_norm is not None:
        centred = _wide(residual) - _over(residual_norm.mean, c)
        normal.append(centred * _over(residual_norm.invstd, c))
    all_dz, all_sums = [], []
    for one, spread in zip(dense, pooled, strict=True):
        total = torch.zeros((), dtype=_wide(c).dtype, device=c.device) if one is None else _wide(one)
        if spread is not None:
            total = total + (spread.to(total.dtype) / (c.shape[2] * c.shape[3]))[:, :, None, None]
        total = _repeated(total, members, width)
        dz = (total if dead is None else torch.where(dead, 0, total)).to(c.dtype).expand_as(c)
        all_dz.append(dz.contiguous(memory_format=torch.channels_last))
        products = [_wide(dz), *(_wide(dz) * factor for factor in normal)]
        all_sums.append(torch.stack([_sum(product, norm.slices) for product in products], 1))
    stacked = all_dz[0] if len(all_dz) == 1 else torch.cat(all_dz)
    return torch.stack(all_sums), stacked


def input_grad(dz: Tensor, c: Tensor, norm: Norm, sums: Tensor | None, relu: bool) -> Tensor:
    """dc (G * N, C, H, W)."""
    groups = dz.shape[0] // c.shape[0]
    centred = _wide(c) - _over(norm.mean, c)
    dead = normalise(c, norm) <= 0 if relu else None
    rows = c.numel() // c.shape[1] // norm.slices
    out = []
    for g, one in enumerate(dz.chunk(groups)):
        dc = _wide(one if dead is None else torch.where(dead, 0, one))
        if sums is not None:
            flat, sloped = (sums[g] / rows).unbind(1)
            dc = dc - _over(flat, c) - centred * _over(sloped * norm.invstd, c)
        out.append((dc * _over(norm.scale, c)).to(c.dtype))
    return out[0] if groups == 1 else torch.cat(out)


def _before_relu(
    c: Tensor, norm: Norm, residual: Tensor | None, residual_norm: Norm | None, members: int, width: int
) -> Tensor:
    z = normalise(c, norm)
    if residual is not None:
        z += _repeated(residual, members, width) if residual_norm is None else normalise(residual, residual_norm)
    return z


def _repeated(x: Tensor, members: int, width: int) -> Tensor:
    """Each run of `width` channels `members` times."""
    if members == 1:
        return x
    return x.unflatten(1, (-1, 1, width)).expand(-1, -1, members, -1, -1, -1).flatten(1, 3)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _over(values: Tensor, c: Tensor) -> Tensor:
    """Numbers of each slice and channel (S, C) as (N or 1, C, 1, 1), to go with a map c."""
    slices = values.shape[0]
    repeated = values if slices == 1 else values.repeat_interleave(c.shape[0] // slices, 0)
    return repeated[:, :, None, None]


def _sum(x: Tensor, slices: int) -> Tensor:
    """(S, C): over the images and pixels of each slice."""
    return x.unflatten(0, (slices, -1)).sum((1, 3, 4))
