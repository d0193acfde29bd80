"""The judge is judged: by a definition still more naive, by its forward counts, FLOPs and live activations.

Tiny nets in float64, six modules of one residual block each, two stages.
"""

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from exact.naive import (
    CASES,
    CLASSES,
    DEPTH,
    EXACT,
    SENSITIVE,
    WIDTHS,
    Block,
    Case,
    Naive,
    Net,
    backbone_buffers,
    batches,
    difference,
    head_of,
    make_net,
)
from exact.two_path import Leap, Twin, TwoPath


def trial(case: Case, spoil: Callable[[Net], TwoPath] = Net.judge, steps: int = 4) -> float:
    """Judge against definition: largest difference of losses, gradients, weights, twins and statistics."""
    net = make_net(case)
    naive = Naive(copy.deepcopy(net))
    judge = spoil(net)
    worst = 0.0
    for images, labels in batches(steps):
        losses = judge.step(images, labels)
        got = {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in net.trained().items()}
        naive_losses, expected = naive.gradients(images, labels)
        naive.move_statistics(images)
        naive.update(expected)
        everything = [dict(n.everything().named_parameters()) for n in (net, naive.net)]
        buffers = [backbone_buffers(n) for n in (net, naive.net)]
        shared = losses.keys() & naive_losses.keys()
        values = [{name: all_losses[name] for name in shared} for all_losses in (losses, naive_losses)]
        pairs = [values, (got, expected), everything, buffers]
        worst = max([worst, *(difference(ours, theirs) for ours, theirs in pairs)])
    return worst


@pytest.mark.parametrize("name", CASES)
def test_four_steps_equal_the_definition(name: str) -> None:
    assert trial(CASES[name]) < EXACT


class TwinsAfterWeights(TwoPath):
    def _move_twins(self) -> None:
        pass

    def _step_weights(self) -> None:
        super()._step_weights()
        super()._move_twins()


class StemWithoutBackward(TwoPath):
    def _backward(self, output: Tensor, gradient: Tensor | None = None) -> None:
        if gradient is None:
            super()._backward(output)


class CutWindows(TwoPath):
    """Detaches between the modules of a window, so that every cascaded loss trains its own module alone."""

    def _cascaded(self, tap: int, y: Tensor, labels: Tensor, losses: dict[str, Tensor]) -> Tensor:
        inner = self.modules[max(1, tap - self.reach + 1) : tap]
        hooks = [module.register_forward_hook(lambda _, __, out: out.detach()) for module in inner]
        first = super()._cascaded(tap, y, labels, losses)
        for hook in hooks:
            hook.remove()
        return first


def deaf_twins(net: Net) -> TwoPath:
    for twin in net.twins:
        twin.block.register_forward_hook(lambda _, __, out: out.detach())
    return net.judge()


FAULTS: dict[str, tuple[str, Callable[[Net], TwoPath]]] = {
    "reach-one-too-long": ("paper-r2", lambda net: net.judge(reach=3)),
    "reach-one-too-short": ("paper-r2", lambda net: net.judge(reach=1)),
    "reach-one-too-long-r3": ("paper-r3-stem-in-module-0", lambda net: net.judge(reach=4)),
    "window-cut": ("cifar-r2", lambda net: net.judge(CutWindows)),
    "independent-weight": ("paper-r2", lambda net: net.judge(w_x=0.002)),
    "cascaded-weight": ("cifar-r2", lambda net: net.judge(w_y=1.0)),
    "last-on-both-paths": ("cifar-r2", lambda net: net.judge(last="both")),
    "last-on-one-path": ("imagenet-r3", lambda net: net.judge(last="cascaded")),
    "statistics-every-forward": ("paper-r2", lambda net: net.judge(statistics="every")),
    "statistics-once": ("cifar-r2", lambda net: net.judge(statistics="once")),
    "stem-twice": ("cifar-r2-stem-in-module-0", lambda net: replace_case(net, stem_apart=True).judge()),
    "stem-without-backward": ("paper-r2", lambda net: net.judge(StemWithoutBackward)),
    "twins-after-weights": ("paper-r2", lambda net: net.judge(TwinsAfterWeights)),
    "twins-move-twice": ("paper-r2", lambda net: net.judge(twins=with_moves(net, 2))),
    "last-twin-moves-once": ("imagenet-r3", lambda net: net.judge(twins=with_moves(net, 1))),
    "twins-rate": ("paper-r2", lambda net: net.judge(ema=0.99)),
    "twins-trained-and-never-moved": ("paper-r2", lambda net: net.judge(twins=[])),
    "twins-stop-the-gradient": ("paper-r2", deaf_twins),
    "no-nesterov": ("paper-r2", lambda net: net.judge(nesterov=False)),
    "no-decay": ("paper-r2", lambda net: net.judge(weight_decay=0.0)),
}


def replace_case(net: Net, **changes: Any) -> Net:
    net.case = Case(**(vars(net.case) | changes))
    return net


def with_moves(net: Net, moves: int) -> list[Twin]:
    return [Twin(twin.block, twin.source, moves) for twin in net.twins]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str) -> None:
    name, spoil = FAULTS[fault]
    assert trial(CASES[name], spoil, steps=2) > SENSITIVE


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cifar-r2", [2, 3, 3, 3, 3, 2]),
        ("imagenet-r3", [2, 3, 4, 4, 3, 2]),
        ("paper-r2", [3, 3, 3, 3, 3, 1]),
        ("paper-r3-stem-in-module-0", [4, 4, 4, 4, 3, 1]),
    ],
)
def test_forward_calls(name: str, counts: list[int]) -> None:
    judge = make_net(CASES[name]).judge()
    for images, labels in batches(2):
        judge.step(images, labels)
        assert judge.forward_calls == counts


def local_losses(first: int) -> set[str]:
    return {f"{i}.{kind}" for i in range(first, DEPTH - 1) for kind in ("independent", "cascaded")}


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("paper-r2", local_losses(0) | {"5.classifier"}),
        ("cifar-r2", local_losses(1) | {"5.classifier"}),
        ("imagenet-r3", local_losses(2) | {"5.classifier", "5.independent"}),
    ],
)
def test_loss_names(name: str, names: set[str]) -> None:
    losses = make_net(CASES[name]).judge().step(*next(batches(1)))
    assert losses.keys() == names
    assert not any(loss.requires_grad for loss in losses.values())


def flops(run: Callable[[], object]) -> tuple[int, int]:
    """FLOPs of the forward and of the convolutions' backward."""
    with FlopCounterMode(display=False) as counter:
        run()
    by_name = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    forward = by_name.get("aten.convolution", 0) + by_name.get("aten.addmm", 0)
    return forward, by_name.get("aten.convolution_backward", 0)


@pytest.mark.parametrize("name", ["cifar-r2", "imagenet-r3"])
def test_flops_follow_from_the_forward_calls(name: str) -> None:
    case = CASES[name]
    net, (images, labels) = make_net(case), next(batches(1))
    judge = net.judge()
    forward, backward = flops(lambda: judge.step(images, labels, update=False))
    forward_calls = judge.forward_calls.copy()

    outputs = [net.stem(images).detach()]
    for module in net.modules:
        outputs.append(module(outputs[-1]).detach())
    stem = flops(lambda: net.stem(images))[0]
    inputs = list(zip(net.modules, outputs[:-1], strict=True))
    whole = [flops(lambda m=m, h=h: m(h))[0] for m, h in inputs]
    reading_input = [flops(lambda m=m, h=h: (m.conv1(h), m.shortcut(h)))[0] for m, h in inputs]
    supervised = range(case.first, DEPTH - 1)
    taps = outputs[case.first + 1 : -1]
    tapped = list(zip(filter(None, net.independent), filter(None, net.leaps), taps, strict=True))
    heads = sum(flops(lambda f=head, h=h: f(h))[0] for head, _, h in tapped)
    heads += flops(lambda: net.classifier(outputs[-1]))[0] * (2 if case.last == "both" else 1)
    leaps = [flops(lambda f=leap, h=h: f(h))[0] for _, leap, h in tapped]
    twins = [flops(lambda f=leap.twins["0"], h=h: f(h))[0] for _, leap, h in tapped]
    calls = sum(n * f for n, f in zip(forward_calls, whole, strict=True))
    assert forward == stem + calls + heads + sum(leaps)

    # A convolution's backward is two forwards' worth, half where its input is detached or its weight frozen.
    isolated = [*supervised, *([DEPTH - 1] if case.last == "both" else [])]
    expected = stem + sum(2 * whole[i] - reading_input[i] for i in isolated)
    for tap in range(case.first, DEPTH):
        begin = tap - case.reach + 1
        expected += 2 * sum(whole[begin : tap + 1]) - (reading_input[begin] if begin > 0 else 0)
    linear = 2 * len(labels) * WIDTHS[-1] * CLASSES
    expected += sum(2 * (leap - linear) - twin for leap, twin in zip(leaps, twins, strict=True))
    assert backward == expected


class LiveBytes:
    """Counts the bytes that autograd keeps for backward, and their peak."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def pack(self, tensor: Tensor) -> "Kept":
        kept, size = Kept(tensor), tensor.nbytes
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(kept, self.drop, size)
        return kept

    def drop(self, size: int) -> None:
        self.live -= size


@dataclass(eq=False)
class Kept:
    tensor: Tensor


def peak_of_equal_modules(depth: int) -> int:
    """Peak saved bytes of one `paper` step in a net of `depth` equal modules."""
    torch.manual_seed(0)
    modules = [Block(3, 3, 1).double() for _ in range(depth)]
    heads = [head_of(3).double() for _ in range(depth - 1)]
    leaps = [Leap([Block(3, 3, 1)], [Block(3, 3, 1)], head_of(3)).double() for _ in range(depth - 1)]
    judge = TwoPath(modules, head_of(3).double(), independent=[*heads, None], leaps=[*leaps, None], reach=2)
    images, labels = torch.randn(7, 3, 6, 6, dtype=torch.float64), torch.arange(7) % CLASSES
    bytes_ = LiveBytes()
    with torch.autograd.graph.saved_tensors_hooks(bytes_.pack, lambda kept: kept.tensor):
        judge.step(images, labels, update=False)
    assert bytes_.live == 0
    return bytes_.peak


def test_live_activations_do_not_grow_with_depth() -> None:
    assert peak_of_equal_modules(9) == peak_of_equal_modules(4) > 0


def test_without_update_only_statistics_move() -> None:
    net, (images, labels) = make_net(CASES["paper-r2"]), next(batches(1))
    before = copy.deepcopy(net)
    net.judge().step(images, labels, update=False)
    weights = dict(net.everything().named_parameters())
    assert difference(weights, dict(before.everything().named_parameters())) == 0
    assert difference(backbone_buffers(net), backbone_buffers(before)) > SENSITIVE
    assert all_gradients(net).abs().max() > SENSITIVE
    norms = [part for part in net.everything().modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(norm.track_running_stats for norm in norms)


def all_gradients(net: Net) -> Tensor:
    gradients = [weight.grad for weight in net.trained().values()]
    present = [gradient.flatten() for gradient in gradients if gradient is not None]
    assert len(present) == len(gradients)
    return torch.cat(present)


def test_bfloat16_gradients_point_the_same_way() -> None:
    net, (images, labels) = make_net(CASES["paper-r2"]), next(batches(1, torch.float32))
    net.everything().float()
    half = copy.deepcopy(net)
    net.judge().step(images, labels, update=False)
    half.judge(precision=torch.bfloat16).step(images, labels, update=False)
    exact, rounded = all_gradients(net), all_gradients(half)
    assert F.cosine_similarity(exact, rounded, dim=0) > 0.99
    assert not torch.equal(exact, rounded)


def test_learning_rate_is_read_at_every_step() -> None:
    net, (images, labels) = make_net(CASES["paper-r2"]), next(batches(1))
    judge = net.judge()
    judge.learning_rate = 0.0
    before = {name: weight.detach().clone() for name, weight in net.trained().items()}
    judge.step(images, labels)
    assert difference(net.trained(), before) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leaps": [None, None, None]}, r"leaps of modules \[1\] are None"),
        ({"independent": [None, None]}, "3 modules, 2 heads"),
        ({"reach": 0}, "reach 0"),
        ({"independent": [None, None, head_of(3)]}, "read by the classifier"),
    ],
)
def test_lists_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    fitting = {"independent": [None] * 3, "leaps": [None, head_of(3), None], "reach": 2}
    with pytest.raises(ValueError, match=message):
        TwoPath([Block(3, 3, 1) for _ in range(3)], head_of(3), **(fitting | changes))


def test_more_twins_than_blocks() -> None:
    with pytest.raises(ValueError, match="1 twins for 0 leap blocks"):
        Leap([], [Block(3, 3, 1)], head_of(3))


def test_foreign_running_statistics_are_refused() -> None:
    foreign = nn.InstanceNorm2d(3, track_running_stats=True)
    with pytest.raises(TypeError, match="InstanceNorm2d"):
        TwoPath([foreign], head_of(3), independent=[None], leaps=[None], reach=1)
