"""Each base's loss of a module's features, written out of its paper's equation on the layers of a head.

Only layers are the engine's: what is done with them, and every loss function, is written here once more, number by
number where that is short.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlaan.learning.methods import DGL, AugLocal, InfoPro, PredSim

BASES: dict[str, Any] = {
    "light": DGL(head="light"),
    "dgl": DGL(),
    "predsim": PredSim(),
    "infopro": InfoPro(),
    "auglocal": AugLocal(),
}


@dataclass
class Ground:
    """A copy of a network that is cut, of the engine's heads, and the batch that it sees.

    Attributes:
        parts: stem and blocks, blocks and blocks, ...: the layers of each of the K modules.
        ends: label of each module's last block.
        blocks: every block by its label, stage.index, in order.
        shapes: every block's output for one image, by label.
        leaps, short_leaps: for the last block of every module the blocks that its leap network copies.
        classifier: the backbone's own.
        heads: by the name of their loss.
        copies: for every block of a head the labels of the blocks whose weights it began with.
        alike: for every block of a head the labels of the blocks whose weights have the shapes of its own.
        images, labels: the batch; labels are classes (N,) or probabilities (N, classes).
        normalisation: mean and deviation of the images' channels.
    """

    parts: list[list[nn.Module]]
    ends: list[str]
    blocks: dict[str, nn.Module]
    shapes: dict[str, tuple[int, ...]]
    leaps: dict[str, str]
    short_leaps: dict[str, str]
    classifier: nn.Module
    heads: dict[str, Any]
    copies: dict[int, set[str]]
    alike: dict[int, set[str]]
    images: Tensor
    labels: Tensor
    normalisation: tuple[Sequence[float], Sequence[float]]

    @property
    def modules(self) -> int:
        return len(self.parts)


def base_loss(base: Any, ground: Ground, head: Any, module: int, h: Tensor) -> Tensor:
    """The loss of `base` on features h of module `module`: its output, or what stands behind it."""
    match base:
        case DGL(head="light"):
            return cross_entropy(head.linear(pooled(h)), ground.labels)
        case DGL():
            return cross_entropy(dgl_logits(head, h), ground.labels)
        case PredSim():
            return predsim_loss(base, ground, head, h)
        case InfoPro():
            return infopro_loss(base, ground, head, module, h)
        case AugLocal():
            return auglocal_loss(base, ground, head, module, h)
    raise TypeError(f"{base} is no base")


def pooled(h: Tensor) -> Tensor:
    """Mean over a map's pixels or over tokens."""
    return h.sum((2, 3)) / (h.shape[2] * h.shape[3]) if h.ndim == 4 else h.sum(1) / h.shape[1]


def picture(h: Tensor) -> Tensor:
    """Tokens, the class token left out, as the square image of patches that they are; maps as they are."""
    if h.ndim == 4:
        return h
    side = math.isqrt(h.shape[1] - 1)
    return torch.stack([h[:, 1 + row * side : 1 + (row + 1) * side] for row in range(side)], 1).permute(0, 3, 1, 2)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-1/N sum over n, v of t_n,v log( exp(z_n,v) / sum over c of exp(z_n,c) ), t one-hot or given as labels (N, V)."""
    targets = one_hot(labels, logits)
    terms = [t * (torch.log(torch.exp(z).sum()) - z) for z, t in zip(logits, targets, strict=True)]
    return torch.stack(terms).sum(1).mean()


def one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """Labels (N,) as rows of as many values as `like` (N, V) has; probabilities (N, V) as they are."""
    return labels if labels.ndim == 2 else torch.eye(like.shape[1], dtype=like.dtype)[labels]


def dgl_logits(head: Any, h: Tensor) -> Tensor:
    """Pool to a quarter of the side; three 1x1 convolutions; pool to 2x2; three linear layers; BN and ReLU between."""
    h = picture(h)
    h = F.adaptive_avg_pool2d(h, (math.ceil(h.shape[2] / 4), math.ceil(h.shape[3] / 4)))
    layers = [(head.convolutions[i], head.convolutions[i + 1]) for i in (0, 3, 6)]
    for convolution, norm in layers:
        assert (convolution.out_channels, convolution.kernel_size, convolution.bias) == (128, (1, 1), None)
        h = norm(F.conv2d(h, convolution.weight)).clamp(min=0)
    h = F.adaptive_avg_pool2d(h, (2, 2)).flatten(1)
    for i in (0, 3):
        h = head.perceptron[i + 1](h @ head.perceptron[i].weight.T).clamp(min=0)
    return h @ head.perceptron[6].weight.T + head.perceptron[6].bias


def predsim_loss(method: PredSim, ground: Ground, head: Any, h: Tensor) -> Tensor:
    """(1 - b) CE(linear(pool(h)), y) + b mean over i, j of (S(conv(h))_ij - S(onehot y)_ij)^2."""
    h = picture(h)
    height, width = h.shape[2:]
    while h.shape[1] * height * width > method.inputs:
        height, width = (math.ceil(height / 2), width) if height >= width else (height, math.ceil(width / 2))
    logits = F.adaptive_avg_pool2d(h, (height, width)).flatten(1) @ head.linear.weight.T + head.linear.bias
    prediction = cross_entropy(logits, ground.labels)
    features = F.conv2d(h, head.convolution.weight, padding=1)
    deviation = features - features.mean((2, 3), keepdim=True)
    pixels = features.shape[2] * features.shape[3]
    rows = (deviation.square().sum((2, 3)) / (pixels - 1)).sqrt()
    onehot = one_hot(ground.labels, logits)
    terms = []
    for i in range(len(h)):
        for j in range(len(h)):
            terms.append((cosine(rows[i], rows[j]) - cosine(onehot[i], onehot[j])) ** 2)
    matching = torch.stack(terms).mean()
    return (1 - method.share) * prediction + method.share * matching


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of two rows, each less its mean."""
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()


def infopro_loss(method: InfoPro, ground: Ground, head: Any, module: int, h: Tensor) -> Tensor:
    """l1 BCE(decoder(h), image) + l2 (CE(head(h), y) or the contrastive loss), l1 and l2 linear in depth."""
    depth = module / (ground.modules - 2)
    l1 = (1 - depth) * method.first_reconstruction + depth * method.last_reconstruction
    l2 = (1 - depth) * method.first_label + depth * method.last_label
    (convolution, norm), hidden, last = head.label[0], head.label[4], head.label[6]
    z = norm(F.conv2d(picture(h), convolution.weight, stride=convolution.stride, padding=1)).clamp(min=0)
    z = (pooled(z) @ hidden.weight.T + hidden.bias).clamp(min=0) @ last.weight.T + last.bias
    contrastive = method.loss == "contrastive"
    label = contrast(z, ground.labels, method.temperature) if contrastive else cross_entropy(z, ground.labels)
    if l1 == 0:
        assert head.decoder is None
        return l2 * label
    return l1 * painting_loss(ground, head.decoder.painters, method.patches, picture(h)) + l2 * label


def painting_loss(ground: Ground, painters: Any, patches: int, h: Tensor) -> Tensor:
    """Binary cross-entropy of the painted pixels and the images before their normalisation, summed over patches."""
    mean, deviation = (torch.tensor(v, dtype=h.dtype)[:, None, None] for v in ground.normalisation)
    pixels = (ground.images * deviation + mean).clamp(0, 1)
    total = torch.zeros((), dtype=h.dtype)
    for row in range(patches):
        for column in range(patches):
            painter, part, wanted = painters[row * patches + column], *(
                x[:, :, row * x.shape[2] // patches : (row + 1) * x.shape[2] // patches,
                  column * x.shape[3] // patches : (column + 1) * x.shape[3] // patches]
                for x in (h, pixels)
            )  # fmt: skip
            small, norm = painter.narrow[0], painter.narrow[1]
            z = norm(F.conv2d(part, small.weight, small.bias, padding=1)).clamp(min=0)
            z = F.interpolate(z, wanted.shape[2:], mode="bilinear", align_corners=True)
            z = F.conv2d(z, painter.paint.weight, painter.paint.bias, padding=1)
            total = total - (wanted * z.sigmoid().log() + (1 - wanted) * (1 - z.sigmoid()).log()).mean()
    return total


def contrast(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean over anchors with a partner of log( exp(z_i z_p / t) / sum over a != i of exp(z_i z_a / t) ), negated."""
    z = z / z.square().sum(1, keepdim=True).sqrt()
    anchors = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        partners = [p for p in others if labels[p] == labels[i]]
        below = torch.stack([torch.exp(z[i] @ z[a] / temperature) for a in others]).sum()
        logs = [torch.log(torch.exp(z[i] @ z[p] / temperature) / below) for p in partners]
        if logs:
            anchors.append(-torch.stack(logs).mean())
    return torch.stack(anchors).mean()


def auglocal_loss(method: AugLocal, ground: Ground, head: Any, module: int, h: Tensor) -> Tensor:
    """CE behind d blocks shaped like later ones, spread evenly; d falls linearly from d to (1 - c) d + c.

    Features that another block made count as those of the first later block with as many channels.
    """
    order = list(ground.blocks)
    axis = 0 if h.ndim == 4 else 1
    later = order[order.index(ground.ends[module]) :]
    start = next(label for label in later if ground.shapes[label][axis] == h.shape[1 + axis])
    fall = method.coefficient * module / (ground.modules - 2)
    depth = max(1, round((1 - fall) * method.depth + fall))
    first, count = order.index(start) + 1, len(order)  # blocks counted from 1
    samples = [round(first + (count - first) / depth * j) for j in range(1, depth + 1)]
    if depth >= count - first:
        samples = list(range(first + 1, count + 1))
    if not samples:
        return base_loss(BASES["light"], ground, head, module, h)
    chain, before = [], first
    for sample in samples:
        between = order[before - 1 : sample]
        changes = [b for a, b in pairwise(between) if ground.shapes[a] != ground.shapes[b]]
        chain += changes or [order[sample - 1]]
        before = sample
    assert len(head.blocks) == len(chain)
    for block, source in zip(head.blocks, chain, strict=True):
        assert source in ground.alike[id(block)]
        assert source not in ground.copies[id(block)]
        h = block(h)
    return base_loss(BASES["light"], ground, head.head, module, h)
