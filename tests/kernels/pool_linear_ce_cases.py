"""Inputs for the tests of pool_linear_ce, and their answers out of PyTorch's own functions in float64."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.forms import assert_near, randn
from mlaan_kernels.pool_linear_ce import HeadResults

FLOATS = ("losses", "weight_grads", "bias_grads", "pooled_grads")


class Case(NamedTuple):
    """The arguments of pool_linear_ce, in order."""

    features: list[Tensor]
    taps: list[int]
    weights: list[Tensor]
    biases: list[Tensor | None]
    labels: Tensor
    loss_weights: list[float]

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Case":
        """Features in `dtype`, parameters in float64 if that is it and in float32 otherwise."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return self._replace(
            features=[feature.to(device, dtype) for feature in self.features],
            weights=[weight.to(device, wide) for weight in self.weights],
            biases=[None if bias is None else bias.to(device, wide) for bias in self.biases],
            labels=self.labels.to(device, wide) if self.labels.is_floating_point() else self.labels.to(device),
        )

    def soft(self, seed: int = 0) -> "Case":
        """With probabilities in place of the labels: labels have over half, some others 0, one row a single class."""
        (images,), classes = self.labels.shape, self.weights[0].shape[0]
        odds = torch.rand(images, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        odds = odds.where(odds > 0.3, 0.0).scatter(1, self.labels.cpu()[:, None], float(classes))
        odds[0] = torch.nn.functional.one_hot(self.labels[0].cpu(), classes)
        probabilities = (odds / odds.sum(1, keepdim=True)).to(self.weights[0].dtype)
        return self._replace(labels=probabilities.to(self.labels.device))


def make_case(
    shapes: Sequence[tuple[int, ...]],
    classes: int,
    taps: Sequence[int] = (0,),
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Case:
    """Loss weights are 1, 0.5, 0.25, ..."""
    images, channels = shapes[0][0], shapes[0][1 if len(shapes[0]) == 4 else -1]
    random = torch.Generator().manual_seed(seed)
    heads = range(len(taps))
    return Case(
        [randn(*shape, seed=seed + index) for index, shape in enumerate(shapes)],
        list(taps),
        [randn(classes, channels, seed=seed + 100 + head) for head in heads],
        [randn(classes, seed=seed + 200 + head) if bias else None for head in heads],
        torch.randint(classes, (images,), generator=random),
        [0.5**head for head in heads],
    ).to(dtype, device)


def answers(case: Case, label_smoothing: float = 0.0) -> HeadResults:
    """By torch.nn.functional and torch.autograd.grad, on the CPU, from the very numbers that `case` holds."""
    case = case.to(torch.float64)
    losses, top1, top5, grads = [], [], [], []
    for tap, weight, bias, loss_weight in zip(case.taps, case.weights, case.biases, case.loss_weights, strict=True):
        pooled = pool_answer(case.features[tap]).requires_grad_()
        parameters = [p.detach().requires_grad_() for p in (weight, bias) if p is not None]
        logits = F.linear(pooled, *parameters)
        loss = F.cross_entropy(logits, case.labels, label_smoothing=label_smoothing)
        grads.append(torch.autograd.grad(loss_weight * loss, [*parameters, pooled]))
        order = logits.argsort(dim=1, descending=True, stable=True)
        likeliest = case.labels.argmax(1) if case.labels.ndim == 2 else case.labels
        hits = order == likeliest[:, None]
        losses.append(loss.detach())
        top1.append(hits[:, :1].sum())
        top5.append(hits[:, :5].sum())
    stacked = [torch.stack(tensors) for tensors in zip(*grads, strict=True)]
    bias_grads = stacked[1] if len(stacked) == 3 else None
    return HeadResults(torch.stack(losses), torch.stack(top1), torch.stack(top5), stacked[0], bias_grads, stacked[-1])


def pool_answer(features: Tensor) -> Tensor:
    features = features.double().cpu()
    if features.ndim == 4:
        return F.adaptive_avg_pool2d(features, 1).flatten(1)
    return features.mean(1) if features.ndim == 3 else features.clone()


def assert_answers(found: HeadResults, wanted: HeadResults, tolerance: float, counts: bool = True) -> None:
    """`counts`: compare the right answers, too; rounding may swap logits that are close."""
    assert (found.bias_grads is None) == (wanted.bias_grads is None)
    for name in FLOATS:
        one, other = getattr(found, name), getattr(wanted, name)
        if other is not None:
            assert not one.requires_grad
            assert_near(one, other, tolerance, name)
    assert found.top1.dtype == found.top5.dtype == torch.int64
    if counts:
        assert found.top1.tolist() == wanted.top1.tolist()
        assert found.top5.tolist() == wanted.top5.tolist()
