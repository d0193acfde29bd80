"""What `pool_linear_ce` takes and gives, for both of its forms."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

LIFT = 4096.0
"""Factor on softmax - target before it is rounded to the features' dtype, taken back from the float32 product.

A power of two, so it costs no accuracy; without it float16 loses the probabilities below 6e-5.
"""


class HeadResults(NamedTuple):
    """What L heads give for N images, C channels and V classes; float32, or float64 for float64 features.

    Attributes:
        losses: (L,), mean over the images, without the loss weights.
        top1: (L,) int64, images whose label has the greatest logit; among equals the lowest class counts as greatest.
            The label of probabilities is the likeliest class, the lowest among equals.
        top5: (L,) int64, images whose label is among the five greatest.
        weight_grads: (L, V, C), gradient of loss_weights[l] * losses[l] for weights[l].
        bias_grads: (L, V), the same for biases[l]; None if there are no biases.
        pooled_grads: (L, N, C), the same for the pooled features that head l reads.
    """

    losses: Tensor
    top1: Tensor
    top5: Tensor
    weight_grads: Tensor
    bias_grads: Tensor | None
    pooled_grads: Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of parameters and results for features of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_features(name: str, features: Tensor) -> None:
    """Raises ValueError if `features` cannot be pooled."""
    if features.ndim not in (2, 3, 4):
        raise ValueError(
            f"{name} has shape {tuple(features.shape)}: give (N, C, H, W), tokens (N, T, C) or pooled (N, C)"
        )
    if features.dtype not in DTYPES:
        raise ValueError(f"{name} is {features.dtype}: give float32, bfloat16, float16 or float64")
    if not features.numel():
        raise ValueError(f"{name} has shape {tuple(features.shape)}: it must not be empty")


def check(
    features: Sequence[Tensor],
    taps: Sequence[int],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    labels: Tensor,
    loss_weights: Sequence[float],
    label_smoothing: float,
) -> None:
    """Raises ValueError for the first argument that does not fit, by name: "weights[3] ..."."""
    if not features:
        raise ValueError("features is empty: give at least one tensor")
    if not weights:
        raise ValueError("weights is empty: give at least one head")
    for index, feature in enumerate(features):
        name = f"features[{index}]"
        check_features(name, feature)
        _expect(name, "dtype", feature.dtype, features[0].dtype, "features[0]")
        _expect(name, "device", feature.device, features[0].device, "features[0]")
        _expect(name, "N", feature.shape[0], features[0].shape[0], "features[0]")
        _expect(name, "C", _channels(feature), _channels(features[0]), "features[0]")
    for name, values in (("taps", taps), ("biases", biases), ("loss_weights", loss_weights)):
        if len(values) != len(weights):
            raise ValueError(f"{name} has {len(values)} entries, weights has {len(weights)}: give one per head")
    for index, tap in enumerate(taps):
        if not 0 <= tap < len(features):
            raise ValueError(f"taps[{index}] is {tap}: there are {len(features)} features, numbered from 0")
    if weights[0].ndim != 2 or not weights[0].shape[0]:
        raise ValueError(f"weights[0] has shape {tuple(weights[0].shape)}: it must be (V, C) with V >= 1")
    shape = (weights[0].shape[0], _channels(features[0]))
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        _check_parameter(f"weights[{index}]", weight, shape, features[0])
        if (bias is None) != (biases[0] is None):
            raise ValueError(f"biases[{index}] is {'' if bias is None else 'not '}None: all heads have a bias or none")
        if bias is not None:
            _check_parameter(f"biases[{index}]", bias, shape[:1], features[0])
    images, target = features[0].shape[0], wide(features[0].dtype)
    if labels.ndim == 2:
        _expect("labels", "shape", tuple(labels.shape), (images, weights[0].shape[0]), "images and classes")
        if labels.dtype != target:
            raise ValueError(f"labels is {labels.dtype}: give probabilities in {target}, as labels.to({target})")
    else:
        if labels.dtype != torch.int64:
            raise ValueError(f"labels is {labels.dtype}: give int64, as labels.long()")
        _expect("labels", "shape", tuple(labels.shape), (images,), "the images")
    _expect("labels", "device", labels.device, features[0].device, "features[0]")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}: it must be at least 0 and below 1")


def _check_parameter(name: str, parameter: Tensor, shape: tuple[int, ...], features: Tensor) -> None:
    if tuple(parameter.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(parameter.shape)}: features and weights[0] ask for {shape}")
    if parameter.dtype != wide(features.dtype):
        raise ValueError(f"{name} is {parameter.dtype}: features of {features.dtype} take {wide(features.dtype)}")
    _expect(name, "device", parameter.device, features.device, "features[0]")


def _channels(features: Tensor) -> int:
    return features.shape[1] if features.ndim == 4 else features.shape[-1]


def _expect(name: str, what: str, found: object, expected: object, partner: str) -> None:
    if found != expected:
        raise ValueError(f"{name} has {what} {found}, {partner} has {expected}: they must be alike")
