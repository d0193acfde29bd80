"""The judge: MLAAN trained as its authors train it, on two paths that run every module again and again.

The isolated path hands each module the detached output of the one before. The cascaded path builds, for
every loss, a window of `reach` modules from a detached start. The paths share nothing but the weights, so
there is no schedule to get wrong; the price is reach + 1 forwards of a module in each step.

The engine is compared with this file and must not be used by it: only torch is imported here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn


class PooledLinear(nn.Module):
    """Global average pool and one linear layer: (N, C, H, W) -> (N, classes)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.mean(dim=(2, 3)))


class Leap(nn.Module):
    """A leap network with its head: a_t = blocks_t(a_{t-1}) + twins_t(a_{t-1}), then `head`.

    `twins` belong to the first blocks in order, None where a layer has no twin: `[twin]` is the published
    code, `[]` a network without twins. No blocks at all leave the head alone.
    Raises ValueError for more twins than blocks.
    """

    def __init__(self, blocks: Sequence[nn.Module], twins: Sequence[nn.Module | None], head: nn.Module) -> None:
        super().__init__()
        if len(twins) > len(blocks):
            raise ValueError(f"{len(twins)} twins for {len(blocks)} leap blocks")
        self.blocks = nn.ModuleList(blocks)
        self.twins = nn.ModuleDict({str(t): twin for t, twin in enumerate(twins) if twin is not None})
        self.head = head

    def forward(self, z: Tensor) -> Tensor:
        for t, block in enumerate(self.blocks):
            z = block(z) + self.twins[str(t)](z) if str(t) in self.twins else block(z)
        return self.head(z)


@dataclass(frozen=True)
class Twin:
    """An EMA twin: the block in a leap network, the live block it follows, its moves per step (0, 1, 2)."""

    block: nn.Module
    source: nn.Module
    moves: int = 1


class TwoPath:
    """MLAAN's training step on the isolated path x and the cascaded path y, eager, on one device.

    `modules`: the K local modules. `stem`: runs once per step ahead of module 0, as in the authors' nets;
    None makes it a part of module 0 that runs as often. `classifier`: the backbone's own pool and linear, for
    the last module's loss. For i < K - 1, `independent[i]` maps the output of module i to logits for the loss
    of weight `w_x` and reach 1, `leaps[i]` for the loss of weight `w_y` and reach min(reach, i + 1); None is
    no such loss. Both lists have K entries and end with None; elsewhere a leap is None only where
    i < reach - 1, since a later window starts from the one before.

    `last`: "cascaded" is one loss of weight 1 and reach min(reach, K) on the classifier; "both" is w_x on the
    isolated path and w_y on the cascaded one, through the same classifier.
    `statistics`: "every" forward of a module moves its running statistics, or the first of a step, "once".
    `twins`: frozen here; they move before the optimizer's step by the rate `ema` (mu). A twin that several
    leap networks hold is listed once.
    `precision`: autocast dtype of the forwards; None: the dtype of the weights.

    Presets. `paper`: every head and leap, last="cascaded", statistics="once". `authors`: no head and no leap
    for the first reach - 1 modules, statistics="every", last="cascaded" for CIFAR and "both" for ImageNet.

    Modules stay the caller's objects, are trained in place, and may appear twice (a shared leap network).
    Raises ValueError for lists that do not fit, TypeError for running statistics that it cannot hold still.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        classifier: nn.Module,
        *,
        independent: Sequence[nn.Module | None],
        leaps: Sequence[nn.Module | None],
        reach: int,
        stem: nn.Module | None = None,
        twins: Sequence[Twin] = (),
        last: Literal["cascaded", "both"] = "cascaded",
        statistics: Literal["once", "every"] = "once",
        w_x: float = 0.001,
        w_y: float = 0.999,
        ema: float = 0.995,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 1e-4,
        precision: torch.dtype | None = None,
    ) -> None:
        _check_lists(len(modules), independent, leaps, reach)
        self.modules, self.classifier, self.stem = list(modules), classifier, stem
        self.independent, self.leaps, self.reach = list(independent), list(leaps), reach
        self.last, self.statistics, self.precision = last, statistics, precision
        self.w_x, self.w_y = w_x, w_y
        # Past this module nothing reads the isolated path, which would run for its running statistics alone.
        heads = [i for i, head in enumerate(independent) if head is not None]
        to_the_end = last == "both" or statistics == "every"
        self._isolated_end = len(modules) if to_the_end else max(heads, default=-1) + 1

        self._norms = [_running_norms(module) for module in modules]
        self.forward_calls = [0] * len(modules)
        for index, module in enumerate(modules):
            module.register_forward_hook(lambda *_, index=index: self._count(index))

        self.twins = list(twins)
        for twin in twins:
            twin.block.requires_grad_(False)
        self._move = get_ema_multi_avg_fn(ema)
        used = [part for part in (stem, *modules, *independent, *leaps, classifier) if part is not None]
        self.trained = [weight for weight in nn.ModuleList(used).parameters() if weight.requires_grad]
        self.device = self.trained[0].device
        self.optimizer = torch.optim.SGD(
            self.trained,
            lr=learning_rate,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            fused=True,
        )

    @property
    def learning_rate(self) -> float:
        """The rate of the next step; settable."""
        return self.optimizer.param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = rate

    def step(self, images: Tensor, labels: Tensor, *, update: bool = True) -> dict[str, Tensor]:
        """Train on one batch: images (N, C, H, W), labels (N,) int64.

        Returns the unweighted losses, scalars on the device without gradient, named "i.independent",
        "i.cascaded" and "K-1.classifier" (numbers filled in); last="both" adds "K-1.independent".
        Afterwards every trained weight holds its gradient in `.grad`, and `forward_calls` says how often each
        module ran. `update=False` leaves twins and weights as they were; running statistics have moved.
        """
        self.forward_calls = [0] * len(self.modules)
        self.optimizer.zero_grad(set_to_none=True)
        # One context around all forwards casts each weight once per step instead of once per forward.
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None):
            losses = self._walk(images, labels)
        for norms in self._norms:
            for norm in norms:
                norm.track_running_stats = True
        if update:
            self._move_twins()
            self._step_weights()
        return losses

    def _walk(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Both paths side by side, module by module; each loss runs backward as soon as it is known."""
        losses: dict[str, Tensor] = {}
        x, y = self._first_windows(images, labels, losses)
        for tap in range(self.reach, len(self.modules)):
            x, y = self._tap(tap, x, y, labels, losses)
        return losses

    def _first_windows(self, images: Tensor, labels: Tensor, losses: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The losses whose gradient reaches the stem; its activations live no longer than this call.

        All their windows deposit their gradient at one cut behind the stem, and the stem runs backward once.
        """
        stem_output = images if self.stem is None else self.stem(images)
        start = stem_output.detach().requires_grad_(stem_output.requires_grad)
        x = y = start
        for tap in range(min(self.reach, len(self.modules))):
            x, y = self._tap(tap, x, y, labels, losses)
        if stem_output.requires_grad:
            self._backward(stem_output, start.grad)
        return x, y

    def _tap(self, tap: int, x: Tensor, y: Tensor, labels: Tensor, losses: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The losses of one module, from the detached starts of its two paths to those of the next module."""
        if tap < self._isolated_end:
            x = self._isolated(tap, x, labels, losses)
        if tap == len(self.modules) - 1 or self.leaps[tap] is not None:
            first = self._cascaded(tap, y, labels, losses)
            if tap >= self.reach - 1:
                y = first
        return x, y

    def _isolated(self, tap: int, x: Tensor, labels: Tensor, losses: dict[str, Tensor]) -> Tensor:
        """x_i = f_i(sg x_{i-1}) and its loss; returns x_i, detached."""
        x = self._run(tap, x)
        head = self.independent[tap]
        if tap == len(self.modules) - 1 and self.last == "both":
            head = self.classifier
        if head is not None:
            loss = F.cross_entropy(head(x), labels)
            losses[f"{tap}.independent"] = loss.detach()
            self._backward(self.w_x * loss)
        return x.detach()

    def _cascaded(self, tap: int, y: Tensor, labels: Tensor, losses: dict[str, Tensor]) -> Tensor:
        """The window of loss `tap`, begun at a detached y; returns its first module's output, detached."""
        begin = max(0, tap - self.reach + 1)
        z = self._run(begin, y)
        first = z.detach()
        for index in range(begin + 1, tap + 1):
            z = self._run(index, z)
        leap = self.leaps[tap]
        if leap is not None:
            name, weight, logits = f"{tap}.cascaded", self.w_y, leap(z)
        else:
            name, logits = f"{tap}.classifier", self.classifier(z)
            weight = self.w_y if self.last == "both" else 1.0
        loss = F.cross_entropy(logits, labels)
        losses[name] = loss.detach()
        self._backward(weight * loss)
        return first

    def _run(self, index: int, x: Tensor) -> Tensor:
        moves = self.statistics == "every" or self.forward_calls[index] == 0
        for norm in self._norms[index]:
            # A training BatchNorm that does not track still normalises with the batch; its buffers rest.
            norm.track_running_stats = moves
        return self.modules[index](x)

    def _backward(self, output: Tensor, gradient: Tensor | None = None) -> None:
        with torch.autocast(self.device.type, enabled=False):
            output.backward(gradient)

    def _move_twins(self) -> None:
        """phi <- mu phi + (1 - mu) theta, parameters only."""
        for twin in self.twins:
            for _ in range(twin.moves):
                self._move(list(twin.block.parameters()), list(twin.source.parameters()), None)

    def _step_weights(self) -> None:
        self.optimizer.step()

    def _count(self, index: int) -> None:
        self.forward_calls[index] += 1


def _check_lists(
    depth: int, independent: Sequence[nn.Module | None], leaps: Sequence[nn.Module | None], reach: int
) -> None:
    if not (len(independent) == len(leaps) == depth) or reach < 1:
        raise ValueError(
            f"{depth} modules, {len(independent)} heads, {len(leaps)} leaps, reach {reach}: "
            "one head and one leap (or None) per module, and reach at least 1"
        )
    if independent[-1] is not None or leaps[-1] is not None:
        raise ValueError("the last module is read by the classifier: its own head and leap must be None")
    missing = [i for i in range(reach - 1, depth - 1) if leaps[i] is None]
    if missing:
        raise ValueError(f"leaps of modules {missing} are None, and the next window would have no start")


def _running_norms(module: nn.Module) -> list[_BatchNorm]:
    norms = []
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            norms += [part] if part.track_running_stats else []
        elif "running_mean" in part._buffers:
            raise TypeError(f"{type(part).__name__}: only BatchNorm's running statistics can be held still")
    return norms
