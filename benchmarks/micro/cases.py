"""What is timed, at ResNet-50's shapes: 256 images of 224x224, bfloat16, channels_last.

Bytes are those that the fused operator has to move: each tensor once per pass over it, 2 bytes per bfloat16 number.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.micro.conv import conv1x1
from benchmarks.micro.harness import Case, Draw, Tensors
from mlaan_kernels.batchnorm_act import batchnorm_act as fused_batchnorm_act
from mlaan_kernels.contrast_loss import contrast_loss as fused_contrast_loss
from mlaan_kernels.contrast_loss.reference import contrast_loss as plain_contrast_loss
from mlaan_kernels.normalize_augment import normalize_augment as fused_normalize_augment
from mlaan_kernels.normalize_augment.reference import normalize_augment as plain_normalize_augment
from mlaan_kernels.patch_mean import patch_mean as fused_patch_mean
from mlaan_kernels.patch_mean.reference import patch_mean as plain_patch_mean
from mlaan_kernels.pool_linear_ce import pool_linear_ce as fused_pool_linear_ce
from mlaan_kernels.similarity_loss import similarity_loss as fused_similarity_loss
from mlaan_kernels.similarity_loss.reference import similarity_loss as plain_similarity_loss

HALF = torch.bfloat16
TEMPERATURE, PATCHES, PAD = 0.07, 2, 4


def words(shape: tuple[int, ...]) -> str:
    """256x64x56x56."""
    return "x".join(map(str, shape))


def phases(forward: int, backward: int) -> dict[str, int]:
    """What both take, too."""
    return {"forward": forward, "backward": backward, "both": forward + backward}


def batchnorm_act(shape: tuple[int, int, int, int], residual: bool, compiled: bool = False) -> Case:
    """Training BatchNorm and ReLU, the residual between them or none.

    Forward: c for the statistics, c again, the residual, y. Backward: dy and c for the sums, dz and c again, dc; with a
    residual also the residual for the mask, and dz, which is the residual's gradient.
    """

    norm = torch.nn.BatchNorm2d(shape[1])
    norm.num_batches_tracked = None
    del norm.weight, norm.bias, norm.running_mean, norm.running_var  # those of the inputs take their places

    def inputs(draw: Draw) -> Tensors:
        mean, variance = torch.zeros(shape[1], device=draw.device), torch.ones(shape[1], device=draw.device)
        values = {"c": draw.normal(*shape, dtype=HALF), "weight": draw.normal(shape[1]), "bias": draw.normal(shape[1])}
        values |= {"running_mean": mean, "running_var": variance}
        return values | ({"residual": draw.normal(*shape, dtype=HALF)} if residual else {})

    def reference(
        c: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        residual: Tensor | None = None,
    ) -> Tensor:
        z = F.batch_norm(c, running_mean, running_var, weight, bias, training=True)
        return F.relu(z if residual is None else z + residual)

    def fused(c: Tensor, residual: Tensor | None = None, **of_norm: Tensor) -> Tensor:
        for name, value in of_norm.items():
            setattr(norm, name, value)
        return fused_batchnorm_act(c, norm, residual)

    wanted = ("c", "weight", "bias", *(("residual",) if residual else ()))
    size = 2 * math.prod(shape)
    moved = phases(4 * size, 7 * size) if residual else phases(3 * size, 5 * size)
    name = words(shape) + ("+residual" if residual else "")
    return Case("batchnorm_act", name, inputs, reference, fused, wanted, moved, compiled=compiled)


def pool_linear_ce(shape: tuple[int, int, int, int], heads: int, classes: int, compiled: bool = False) -> Case:
    """Heads of one width, each on a map of its own: losses and all gradients.

    The features once; the weights and their gradients in float32. Plain PyTorch writes a gradient for every pixel.
    """
    images, channels = shape[:2]

    def inputs(draw: Draw) -> Tensors:
        features = {f"feature{i}": draw.normal(*shape, dtype=HALF) for i in range(heads)}
        weights = {f"weight{i}": draw.normal(classes, channels) / channels**0.5 for i in range(heads)}
        return features | weights | {"labels": draw.integers(classes, images)}

    def reference(labels: Tensor, **others: Tensor) -> tuple[Tensor, ...]:
        logits = [
            others[f"feature{i}"].mean((2, 3)).float() @ others[f"weight{i}"].to(HALF).float().T for i in range(heads)
        ]
        return tuple(F.cross_entropy(scores, labels) for scores in logits)

    class Fused:
        def __init__(self, inputs: Tensors) -> None:
            self.features, self.weights = (
                [inputs[f"{kind}{i}"] for i in range(heads)] for kind in ("feature", "weight")
            )
            self.labels = inputs["labels"]

        def forward(self) -> Tensors:
            found = fused_pool_linear_ce(
                self.features, range(heads), self.weights, [None] * heads, self.labels, [1.0] * heads
            )
            losses = {f"result {i}": loss for i, loss in enumerate(found.losses)}
            return losses | {f"gradient of weight{i}": grad for i, grad in enumerate(found.weight_grads)}

        def backward(self, results: Tensors) -> Tensors:
            return results  # the forward pass gave them

    wanted = tuple(f"{kind}{i}" for kind in ("feature", "weight") for i in range(heads))
    moved = heads * (2 * math.prod(shape) + 8 * classes * channels + 4 * images * channels)
    name = f"{heads}x{words(shape)}-{classes}"
    products = {"both": 6 * heads * images * classes * channels}
    return Case(
        *("pool_linear_ce", name, inputs, reference, Fused, wanted, {"both": moved}, products),
        fused_is_work=True,
        compiled=compiled,
    )


def similarity_loss(shape: tuple[int, int, int, int], classes: int, compiled: bool = False) -> Case:
    """PredSim's loss: the features once forwards; backwards again, and their gradient."""

    def inputs(draw: Draw) -> Tensors:
        return {"features": draw.normal(*shape, dtype=HALF), "labels": draw.integers(classes, shape[0])}

    def reference(features: Tensor, labels: Tensor) -> Tensor:
        return plain_similarity_loss(features, labels, classes)

    def fused(features: Tensor, labels: Tensor) -> Tensor:
        return fused_similarity_loss(features, labels, classes)

    size = 2 * math.prod(shape)
    moved = phases(size, 2 * size)
    return Case("similarity_loss", words(shape), inputs, reference, fused, ("features",), moved, compiled=compiled)


def contrast_loss(images: int, width: int, classes: int, compiled: bool = False) -> Case:
    """InfoPro's loss: so little data that a launch takes longer."""

    def inputs(draw: Draw) -> Tensors:
        return {"embeddings": draw.normal(images, width, dtype=HALF), "labels": draw.integers(classes, images)}

    def reference(embeddings: Tensor, labels: Tensor) -> Tensor:
        return plain_contrast_loss(embeddings, labels, TEMPERATURE)

    def fused(embeddings: Tensor, labels: Tensor) -> Tensor:
        return fused_contrast_loss(embeddings, labels, TEMPERATURE)

    size = 2 * images * width
    moved = phases(size, 2 * size)
    products = phases(2 * images**2 * width, 4 * images**2 * width)
    name = f"{images}x{width}"
    return Case("contrast_loss", name, inputs, reference, fused, ("embeddings",), moved, products, compiled=compiled)


def patch_mean(shape: tuple[int, int, int, int], compiled: bool = False) -> Case:
    """HPFF's fusion: the map and its mean, once each in either direction."""

    def inputs(draw: Draw) -> Tensors:
        return {"h": draw.normal(*shape, dtype=HALF)}

    def reference(h: Tensor) -> Tensor:
        return plain_patch_mean(h, PATCHES)

    def fused(h: Tensor) -> Tensor:
        return fused_patch_mean(h, PATCHES)

    small = 2 * shape[0] * shape[1] * math.prod(-(-side // PATCHES) for side in shape[2:])
    size = 2 * math.prod(shape) + small
    return Case("patch_mean", words(shape), inputs, reference, fused, ("h",), phases(size, size), compiled=compiled)


def normalize_augment(images: int, side: int, compiled: bool = False) -> Case:
    """Shift, mirror and normalise: one byte read and two written per value."""

    def inputs(draw: Draw) -> Tensors:
        mean, std = (torch.full((3,), value, device=draw.device) for value in (0.45, 0.25))
        pixels = draw.integers(256, images, side, side, 3, dtype=torch.uint8)
        return {"images": pixels, "mean": mean, "std": std, "seeds": draw.integers(2**40, images)}

    def fused(images: Tensor, mean: Tensor, std: Tensor, seeds: Tensor) -> Tensor:
        return fused_normalize_augment(images, mean, std, seeds, pad=PAD, flip=True, dtype=HALF)

    def reference(images: Tensor, mean: Tensor, std: Tensor, seeds: Tensor) -> Tensor:
        return plain_normalize_augment(images, mean, std, seeds, PAD, False, True, HALF)

    moved = {"forward": 3 * images * side * side * 3}
    name = f"{images}x{side}x{side}x3"
    return Case("normalize_augment", name, inputs, reference, fused, (), moved, compiled=compiled)


CASES = (
    batchnorm_act((256, 256, 56, 56), residual=True, compiled=True),
    batchnorm_act((256, 64, 56, 56), residual=False, compiled=True),
    batchnorm_act((256, 256, 14, 14), residual=False),
    batchnorm_act((256, 2048, 7, 7), residual=True),
    conv1x1((256, 64, 56, 56), 256, compiled=True),
    conv1x1((256, 512, 28, 28), 128),
    conv1x1((256, 256, 14, 14), 1024),
    conv1x1((256, 1024, 14, 14), 2048, stride=2),
    pool_linear_ce((256, 1024, 14, 14), heads=3, classes=1000, compiled=True),
    pool_linear_ce((256, 2048, 7, 7), heads=1, classes=1000),
    similarity_loss((256, 1024, 14, 14), classes=1000, compiled=True),
    contrast_loss(256, 128, classes=1000, compiled=True),
    patch_mean((256, 1024, 14, 14), compiled=True),
    normalize_augment(256, 224),
)

SMALL = (
    batchnorm_act((4, 16, 5, 5), residual=True),
    batchnorm_act((4, 37, 5, 5), residual=False),
    conv1x1((3, 16, 6, 6), 24),
    conv1x1((3, 16, 5, 5), 24, stride=2),
    pool_linear_ce((4, 16, 3, 3), heads=2, classes=7),
    similarity_loss((4, 16, 3, 3), classes=3),
    contrast_loss(8, 16, classes=3),
    patch_mean((2, 16, 5, 5)),
    normalize_augment(2, 6),
)
"""Every operator in a moment, for tests and for compute-sanitizer."""
