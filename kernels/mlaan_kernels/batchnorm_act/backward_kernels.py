"""Triton kernels of the backward: ReLU's mask and the sums that BatchNorm needs, then the gradient of its input.

Legend as in forward_kernels.py; I images. Up to two cotangents are carried at once: cotangent g of row m is row
g * M + m wherever they are stacked. A ReLU let through what is above its floor: 0, or -inf where there is none.
"""
# pyright: reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def reduce_kernel(
    dense0_MC,
    dense1_MC,
    pooled0_IC,
    pooled1_IC,
    c_MC,
    mean_SC,
    invstd_SC,
    scale_SC,
    bias_C,
    residual_MC,
    residual_mean_SC,
    residual_invstd_SC,
    residual_scale_SC,
    residual_bias_C,
    dz_GMC,
    sums_GTKC,
    M,
    HW,
    rows,
    tile,
    tiles,
    C,
    width,
    parts,
    floor,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dz = cotangent where relu let its input through, else 0; and each tile's sums of dz, of dz times the normalised
    c, and of dz times the normalised residual.

    The mask is rebuilt from c and the residual. Cotangents and a plain residual have one run of `width` channels for
    MEMBERS runs of the others.

    Without pooled pointers every cotangent is dense. With them bit g of `parts` says that cotangent g has a dense part,
    bit 2 + g that it has a pooled one: what is absent is not read, and all combinations are one compiled form.
    """
    part = tl.program_id(0)
    first = part % tiles * tile
    stop = tl.minimum(first + tile, rows)
    s = part // tiles
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    mean = tl.load(mean_SC + s * C + cols, mask=inside, other=0.0)
    invstd = tl.load(invstd_SC + s * C + cols, mask=inside, other=0.0)
    scale = tl.load(scale_SC + s * C + cols, mask=inside, other=0.0)
    bias = tl.load(bias_C + cols, mask=inside, other=0.0)
    if residual_mean_SC is not None:
        residual_mean = tl.load(residual_mean_SC + s * C + cols, mask=inside, other=0.0)
        residual_invstd = tl.load(residual_invstd_SC + s * C + cols, mask=inside, other=0.0)
        residual_scale = tl.load(residual_scale_SC + s * C + cols, mask=inside, other=0.0)
        bias += tl.load(residual_bias_C + cols, mask=inside, other=0.0)
    if MEMBERS == 1:
        out_cols = cols
        out_C = C
    else:
        out_cols = cols // (MEMBERS * width) * width + cols % width
        out_C = C // MEMBERS
    sum0 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    product0 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    residual0 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum1 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    product1 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    residual1 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(first, stop, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        mask = (row < stop)[:, None] & inside[None, :]
        image = s * (rows // HW) + row // HW
        pixel = image.to(tl.int64)[:, None] * out_C + out_cols[None, :]
        row = s.to(tl.int64) * rows + row
        place = row[:, None] * C + cols[None, :]
        out_place = row[:, None] * out_C + out_cols[None, :]
        # All loads come before the first store: none could be moved across it.
        c = tl.load(c_MC + place, mask=mask, other=0.0).to(tl.float32)
        dz0 = _cotangent(dense0_MC, pooled0_IC, parts, out_place, pixel, HW, mask)
        if GROUPS == 2:
            dz1 = _cotangent(dense1_MC, pooled1_IC, parts >> 1, out_place, pixel, HW, mask)
        centred = c - mean[None, :]
        normal = centred * invstd[None, :]
        z = centred * scale[None, :] + bias[None, :]
        if residual_mean_SC is not None:
            residual = tl.load(residual_MC + place, mask=mask, other=0.0).to(tl.float32) - residual_mean[None, :]
            z += residual * residual_scale[None, :]
            residual *= residual_invstd[None, :]
        elif residual_MC is not None:
            z += tl.load(residual_MC + out_place, mask=mask, other=0.0).to(tl.float32)
        dead = z <= floor
        dz0 = _masked(dz0, dead, dz_GMC, c_MC, place, mask)
        sum0 += dz0
        product0 += dz0 * normal
        if residual_mean_SC is not None:
            residual0 += dz0 * residual
        if GROUPS == 2:
            dz1 = _masked(dz1, dead, dz_GMC, c_MC, (row + M)[:, None] * C + cols[None, :], mask)
            sum1 += dz1
            product1 += dz1 * normal
            if residual_mean_SC is not None:
                residual1 += dz1 * residual
    K: tl.constexpr = 3 if residual_mean_SC is not None else 2
    out = sums_GTKC + part.to(tl.int64) * K * C + cols
    tl.store(out, tl.sum(sum0, 0), mask=inside)
    tl.store(out + C, tl.sum(product0, 0), mask=inside)
    if residual_mean_SC is not None:
        tl.store(out + 2 * C, tl.sum(residual0, 0), mask=inside)
    if GROUPS == 2:
        out += tl.num_programs(0).to(tl.int64) * K * C
        tl.store(out, tl.sum(sum1, 0), mask=inside)
        tl.store(out + C, tl.sum(product1, 0), mask=inside)
        if residual_mean_SC is not None:
            tl.store(out + 2 * C, tl.sum(residual1, 0), mask=inside)


@triton.jit
def _cotangent(dense_MC, pooled_IC, parts, place, pixel, HW, mask):
    """A cotangent's dense part (bit 0) and its pooled part (bit 2), which is spread over the image's HW pixels."""
    if pooled_IC is None:
        dz = tl.load(dense_MC + place, mask=mask, other=0.0).to(tl.float32)
    else:
        dz = tl.load(dense_MC + place, mask=mask & (parts & 1 != 0), other=0.0).to(tl.float32)
        dz += tl.load(pooled_IC + pixel, mask=mask & (parts & 4 != 0), other=0.0) * (1.0 / HW)
    return dz


@triton.jit
def _masked(dz, dead, dz_GMC, like_MC, there, mask):
    """dz behind the mask, rounded as it is stored."""
    dz = tl.where(dead, 0.0, dz).to(like_MC.dtype.element_ty)
    if dz_GMC is not None:
        tl.store(dz_GMC + there, dz, mask=mask)
    return dz.to(tl.float32)


@triton.jit
def input_grad_kernel(
    dz_GMC,
    c_MC,
    mean_SC,
    invstd_SC,
    scale_SC,
    bias_C,
    sums_GSKC,
    dc_GMC,
    M,
    slices,
    rows,
    tile,
    tiles,
    C,
    floor,
    GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dc = scale * (dz - mean of dz - normalised c * mean of dz times it), the means over the slice.

    Without sums the statistics did not come from c, and dc = scale * dz. A floor of 0: dz is not masked yet.
    """
    part = tl.program_id(0)
    first = part % tiles * tile
    stop = tl.minimum(first + tile, rows)
    s = part // tiles
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < C
    mean = tl.load(mean_SC + s * C + cols, mask=inside, other=0.0)
    invstd = tl.load(invstd_SC + s * C + cols, mask=inside, other=0.0)
    scale = tl.load(scale_SC + s * C + cols, mask=inside, other=0.0)
    bias = tl.load(bias_C + cols, mask=inside, other=0.0)
    if sums_GSKC is not None:
        flat0, sloped0 = _means(sums_GSKC, s, rows, C, cols, inside, invstd)
        if GROUPS == 2:
            flat1, sloped1 = _means(sums_GSKC, slices + s, rows, C, cols, inside, invstd)
    for start in range(first, stop, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        mask = (row < stop)[:, None] & inside[None, :]
        row = s.to(tl.int64) * rows + row
        place = row[:, None] * C + cols[None, :]
        # All loads come before the first store: none could be moved across it.
        centred = tl.load(c_MC + place, mask=mask, other=0.0).to(tl.float32) - mean[None, :]
        dz0 = tl.load(dz_GMC + place, mask=mask, other=0.0).to(tl.float32)
        if GROUPS == 2:
            there = (row + M)[:, None] * C + cols[None, :]
            dz1 = tl.load(dz_GMC + there, mask=mask, other=0.0).to(tl.float32)
        dead = centred * scale[None, :] + bias[None, :] <= floor
        dz0 = tl.where(dead, 0.0, dz0)
        if GROUPS == 2:
            dz1 = tl.where(dead, 0.0, dz1)
        if sums_GSKC is not None:
            dz0 -= flat0[None, :] + centred * sloped0[None, :]
            if GROUPS == 2:
                dz1 -= flat1[None, :] + centred * sloped1[None, :]
        tl.store(dc_GMC + place, (dz0 * scale[None, :]).to(dc_GMC.dtype.element_ty), mask=mask)
        if GROUPS == 2:
            tl.store(dc_GMC + there, (dz1 * scale[None, :]).to(dc_GMC.dtype.element_ty), mask=mask)


@triton.jit
def _means(sums_GSKC, part, rows, C, cols, inside, invstd):
    """Over the slice: the mean of dz, and that of dz times the normalised c, times invstd for use with c - mean."""
    sums = sums_GSKC + part * 2 * C + cols
    flat = tl.load(sums, mask=inside, other=0.0) / rows
    return flat, tl.load(sums + C, mask=inside, other=0.0) / rows * invstd
