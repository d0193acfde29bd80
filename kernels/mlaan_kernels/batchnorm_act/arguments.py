"""Refuses arguments that do not fit together: the kernels would read past the end of something."""

from collections.abc import Sequence

from torch import Tensor, nn

from mlaan_kernels.norm import Norm


def check_map(name: str, x: Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"{name} of shape {tuple(x.shape)} and {x.dtype} is no map (N, C, H, W) of floats")


def check_like(c: Tensor, **maps: Tensor | None) -> None:
    """Each of `maps` that is there has the shape and dtype of c."""
    for name, x in maps.items():
        if x is not None and (x.shape != c.shape or x.dtype != c.dtype):
            raise ValueError(
                f"{name} of {tuple(x.shape)}, {x.dtype} does not fit c of {tuple(c.shape)}, {c.dtype}: make them alike"
            )


def output_like(c: Tensor, members: int, width: int | None) -> Tensor:
    """A map without storage of its own, of the shape and dtype of the sum of `members` of c's runs of channels."""
    if members not in (1, 2):
        raise ValueError(f"members = {members}: a layer alone is 1, a layer and its twin are 2")
    if c.shape[1] % (members * (width or 1)) or (members > 1 and not width):
        raise ValueError(
            f"members = {members} of width = {width} do not divide c's {c.shape[1]} channels: give the width of one"
        )
    return c[:, : c.shape[1] // members]


def count_rows(c: Tensor, slices: int) -> int:
    """Values of a channel in a slice."""
    if slices < 1 or c.shape[0] % slices:
        raise ValueError(f"slices = {slices} do not divide a batch of {c.shape[0]}: join equal batches")
    rows = c.numel() // max(1, c.shape[1]) // slices
    if rows < 2:
        raise ValueError(
            f"BatchNorm over one value: each channel of {tuple(c.shape)} in {slices} slices has {rows} and no "
            "variance; use larger batches or maps"
        )
    return rows


def aligned_norms(
    c: Tensor, norm: Norm, residual: Tensor | None = None, residual_norm: Norm | None = None
) -> tuple[Norm, Norm | None]:
    """Both with the same number of slices: running statistics, one slice, serve every slice of the other."""
    if residual is None and residual_norm is not None:
        raise ValueError("residual_norm without a residual: give both")
    for name, one in (("norm", norm), ("residual_norm", residual_norm)):
        if one is not None and (one.mean.shape[1] != c.shape[1] or c.shape[0] % one.slices):
            raise ValueError(f"{name} of {tuple(one.mean.shape)} (slices, channels) does not fit c of {tuple(c.shape)}")
    if residual_norm is None or residual_norm.slices == norm.slices:
        return norm, residual_norm
    if 1 not in (norm.slices, residual_norm.slices):
        raise ValueError(f"norm has {norm.slices} slices and residual_norm {residual_norm.slices}: join them alike")
    slices = max(norm.slices, residual_norm.slices)
    return _repeated(norm, slices), _repeated(residual_norm, slices)


def check_cotangents(
    c: Tensor, dense: Sequence[Tensor | None], pooled: Sequence[Tensor | None], plain_mask: bool, write: bool
) -> None:
    """They are like c, the output; `plain_mask`: c alone decides what a ReLU let through."""
    if len(dense) not in (1, 2) or len(pooled) != len(dense):
        raise ValueError(f"{len(dense)} dense and {len(pooled)} pooled cotangents: give one or two, None for no part")
    for g, (one, spread) in enumerate(zip(dense, pooled, strict=True)):
        if one is None and spread is None:
            raise ValueError(f"cotangent {g} has neither a dense nor a pooled part: leave it out")
        if spread is not None and spread.shape != c.shape[:2]:
            raise ValueError(f"pooled[{g}] of {tuple(spread.shape)} does not fit c of {tuple(c.shape)}: it is (N, C)")
    check_like(c, **{f"dense[{g}]": one for g, one in enumerate(dense)})
    if not write and (not plain_mask or any(d is None for d in dense) or any(p is not None for p in pooled)):
        raise ValueError("write = False needs dense cotangents alone and a mask that c gives")


def check_layers(layers: Sequence[nn.BatchNorm2d], channels: int) -> None:
    """Their channels side by side are those of c, and they have what a Norm is made of."""
    if not layers or any(layer.weight is None or layer.bias is None for layer in layers):
        raise ValueError("the BatchNorm2d has no weight and bias: make it with affine=True")
    wanted = sum(layer.num_features for layer in layers)
    if channels != wanted:
        raise ValueError(f"a BatchNorm2d of {wanted} channels does not fit c with {channels}")
    if len(layers) == 1:
        if layers[0].momentum is None:
            raise ValueError("the BatchNorm2d has momentum = None: give it a number")
    elif any(layer.running_mean is not None or layer.eps != layers[0].eps for layer in layers):
        raise ValueError("several BatchNorms run as one only without running statistics and with equal eps")


def check_stack(dz: Tensor, c: Tensor, norm: Norm, sums: Tensor | None) -> None:
    """dz is one or two cotangents like c, and the sums are theirs."""
    groups = dz.shape[0] // max(1, c.shape[0])
    if groups not in (1, 2) or dz.shape != (groups * c.shape[0], *c.shape[1:]) or dz.dtype != c.dtype:
        raise ValueError(
            f"dz of {tuple(dz.shape)}, {dz.dtype} does not fit c of {tuple(c.shape)}, {c.dtype}: stack 1 or 2 like c"
        )
    wanted = (groups, norm.slices, 2, c.shape[1])
    if sums is not None and sums.shape != wanted:
        raise ValueError(f"sums of {tuple(sums.shape)} do not fit: {wanted} is (cotangents, slices, 2, channels)")


def _repeated(norm: Norm, slices: int) -> Norm:
    mean, invstd, scale = (x.expand(slices, -1).contiguous() for x in (norm.mean, norm.invstd, norm.scale))
    return Norm(mean, invstd, scale, norm.bias)
