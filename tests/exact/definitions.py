"""The plain definition of every method: which losses there are, on which module, of what weight, and where to detach.

Written from the papers' equations and method.md, for any settings of a method, without the engine's plan, executor,
supervision or loss functions; `definitions_bases` has the losses of single heads, `definitions_nets` the blocks of
leap networks.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from exact.definitions_bases import BASES, Ground, base_loss, cross_entropy, picture
from mlaan.config import MethodConfig
from mlaan.learning.methods import DGL, HPFF, MAN, MLAAN, AugLocal, BackLink, EndToEnd, InfoPro, PredSim


@dataclass(frozen=True)
class Term:
    """weight * loss(h_module); its gradient ends at the input of module `module - reach + 1`."""

    module: int
    kind: str
    reach: int
    weight: float
    head: nn.Module
    loss: Callable[[Tensor], Tensor]


def gradients(method: MethodConfig, ground: Ground) -> dict[str, Tensor]:
    """Every loss by its name. The gradients are left in `.grad`: each loss makes a graph of its own, from sg h."""
    values = {}
    sg = [ground.images]
    with torch.no_grad():
        for part in ground.parts[:-1]:
            sg.append(through(part, sg[-1]))
    for term in terms(method, ground):
        begin = max(0, term.module - term.reach + 1)
        window = [layer for part in ground.parts[begin : term.module + 1] for layer in part]
        value = term.loss(through(window, sg[begin]))
        values[f"{term.module}.{term.kind}"] = value.detach()
        frozen = {id(p) for p in frozen_weights(term.head)}
        trained = [p for layer in (*window, term.head) for p in layer.parameters() if id(p) not in frozen]
        for p, g in zip(trained, torch.autograd.grad(term.weight * value, trained, allow_unused=True), strict=True):
            if g is not None:
                p.grad = g if p.grad is None else p.grad + g
    return values


def through(layers: Iterable[nn.Module], h: Tensor) -> Tensor:
    """f(h), layer by layer."""
    for layer in layers:
        h = layer(h)
    return h


def frozen_weights(head: nn.Module) -> Iterator[nn.Parameter]:
    """Those of EMA twins."""
    for network in head.modules():
        for twin in getattr(network, "twins", {}).values():
            yield from twin.parameters()


def terms(method: MethodConfig, ground: Ground) -> Iterator[Term]:
    """The losses of a method."""
    match method:
        case EndToEnd():
            yield last(ground, ground.modules)
        case DGL() | PredSim() | InfoPro() | AugLocal():
            yield from local(ground, method, 1)
        case BackLink():
            yield from local(ground, BASES[method.base], method.reach)
        case MAN():
            yield from man(method, ground)
        case HPFF():
            yield from hpff(method, ground)
        case MLAAN():
            yield from mlaan(method, ground)
        case _:
            raise TypeError(f"{method} has no definition")


def last(ground: Ground, reach: int, kind: str = "classifier", weight: float = 1.0) -> Term:
    """CE on the backbone's own classifier, behind the last module."""
    read = ground.classifier
    return Term(ground.modules - 1, kind, reach, weight, read, lambda h: cross_entropy(read(h), ground.labels))


def local(ground: Ground, base: Any, reach: int) -> Iterator[Term]:
    """L(c_i(f_i(... f_{i-r+1}(sg h_{i-r}))), y) for every module."""
    for i in range(ground.modules - 1):
        yield alone(ground, i, "local", reach, 1.0, base)
    yield last(ground, reach)


def alone(ground: Ground, module: int, kind: str, reach: int, weight: float, base: Any) -> Term:
    """The base's loss on the module's output."""
    head = ground.heads[f"{module}.{kind}"]
    return Term(module, kind, reach, weight, head, lambda h: base_loss(base, ground, head, module, h))


def behind(
    ground: Ground, module: int, kind: str, reach: int, weight: float, base: Any, before: Callable[[Tensor], Tensor]
) -> Term:
    """The base's loss on what `before` makes of the module's output."""
    whole = ground.heads[f"{module}.{kind}"]
    return Term(module, kind, reach, weight, whole, lambda h: base_loss(base, ground, whole.head, module, before(h)))


def man(method: MAN, ground: Ground) -> Iterator[Term]:
    """L(c_i(b_i(z) + e_i(z)), y), in MAN++ L(c_i(s_i b_i(z) + (2 - s_i) e_i(z)), y); b, e: of the next block."""
    order = list(ground.blocks)
    for i, end in enumerate(ground.ends[:-1]):
        network, source = ground.heads[f"{i}.local"], order[order.index(end) + 1]
        [block], [twin] = network.blocks, network.twins.values()
        assert source in ground.copies[id(block)] & ground.copies[id(twin)]

        def before(z: Tensor, network: Any = network, block: Any = block, twin: Any = twin) -> Tensor:
            if not method.scale:
                return block(z) + twin(z)
            return network.scale * block(z) + (2 - network.scale) * twin(z)

        yield behind(ground, i, "local", 1, 1.0, BASES[method.base], before)
    yield last(ground, 1)


def hpff(method: HPFF, ground: Ground) -> Iterator[Term]:
    """w_x L(c_i(P(f_i(sg h_{i-1}))), y) + w_y L(d_i(P(f_i(f_{i-1}(sg h_{i-2})))), y), P: average of n x n patches."""
    pair = (("independent", 1, method.independent_weight), ("cascaded", method.reach, method.cascaded_weight))
    for i in range(ground.modules - 1):
        for kind, reach, weight in pair:
            if kind == "independent" and not weight:
                continue
            if method.base == "infopro":
                label_alone = InfoPro(first_reconstruction=0, last_reconstruction=0, first_label=1, last_label=1)
                base = label_alone if kind == "independent" else InfoPro(patches=method.patches)
                yield alone(ground, i, kind, reach, weight, base)
            elif method.patches == 1:
                yield alone(ground, i, kind, reach, weight, BASES[method.base])
            else:
                fuse = partial(on_picture, lambda h: patch_average(h, method.patches))
                yield behind(ground, i, kind, reach, weight, BASES[method.base], fuse)
    yield last(ground, method.reach)


def on_picture(change: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """A change of maps, for tokens, too: their patches are the map, and the class token stays in front."""
    return change(h) if h.ndim == 4 else torch.cat([h[:, :1], change(picture(h)).flatten(2).transpose(1, 2)], 1)


def patch_average(h: Tensor, n: int) -> Tensor:
    """Mean of a map's n x n parts, where its sides divide."""
    height, width = h.shape[2] // n, h.shape[3] // n
    assert (n * height, n * width) == tuple(h.shape[2:])
    total = torch.zeros_like(h[:, :, :height, :width])
    for row in range(n):
        for column in range(n):
            total = total + h[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width]
    return total / n**2


def mlaan(method: MLAAN, ground: Ground) -> Iterator[Term]:
    """w_x L(c_i(f_i(sg h_{i-1})), y) + w_y L(d_i(A_i(f_i(... f_{i-r+1}(sg h_{i-r})))), y), the last on the classifier.

    Their code ("authors") leaves the first r - 1 modules without losses, and for ImageNet, which has four stages, puts
    both losses on the classifier.
    """
    base, authors = BASES[method.base], method.preset == "authors"
    behind_leaps = BASES["light" if method.base == "auglocal" else method.base]
    kind, reach, weight = ("cascaded", method.reach, method.cascaded_weight) if method.mlm else ("local", 1, 1.0)
    for i in range(method.reach - 1 if authors else 0, ground.modules - 1):
        if method.mlm and method.independent_weight:
            yield alone(ground, i, "independent", 1, method.independent_weight, base)
        if not method.lam or method.preset == "light":
            yield alone(ground, i, kind, reach, weight, base)
        else:
            yield behind(ground, i, kind, reach, weight, behind_leaps, leap(method, ground, i, kind))
    if authors and ground.ends[-1].startswith("4"):
        yield last(ground, 1, "independent", method.independent_weight)
        yield last(ground, reach, weight=method.cascaded_weight)
    else:
        yield last(ground, reach)


def leap(method: MLAAN, ground: Ground, module: int, kind: str) -> Callable[[Tensor], Tensor]:
    """A_i: a_1 = Leap_1(z) + Ema_1(z), a_t = Leap_t(a_{t-1}); ours: of the stage, live, pooled, short."""
    fast = method.preset == "fast"
    network = ground.heads[f"{module}.{kind}"]
    shared = fast if method.leap == "auto" else method.leap == "stage"
    short = fast if method.depth == "auto" else method.depth == "short"
    halved = fast if method.pooled == "auto" else method.pooled
    joined = ("none" if fast else "first") if method.twins == "auto" else method.twins
    end = ground.ends[module]
    if shared:  # the leap of the first module that ends in the stage
        end = next(other for other in ground.ends if other[0] == end[0])
        assert network is ground.heads[f"{ground.ends.index(end)}.{kind}"]
    sources = (ground.short_leaps if short else ground.leaps)[end].split()
    twins = {"none": 0, "first": 1, "all": len(sources)}[joined]
    fresh = method.preset == "authors" and ground.ends[-1].startswith("4")
    assert len(network.blocks) == (0 if method.leap == "live" else len(sources))
    assert len(network.twins) == twins
    for t, source in enumerate(sources):
        made = [network.blocks[t]] if method.leap != "live" else []
        made += [network.twins[str(t)]] if t < twins else []
        for block in made:
            assert source in (ground.alike if fresh else ground.copies)[id(block)]
            assert not (fresh and source in ground.copies[id(block)])

    def before(z: Tensor) -> Tensor:
        z = on_picture(neighbours, z) if halved else z
        for t, source in enumerate(sources):
            a = still(ground.blocks[source], z) if method.leap == "live" else network.blocks[t](z)
            z = a + network.twins[str(t)](z) if t < twins else a
        return z

    return before


def still(block: nn.Module, z: Tensor) -> Tensor:
    """The live block, its weights taken as constants."""
    return functional_call(block, {name: p.detach() for name, p in block.named_parameters()}, (z,))


def neighbours(h: Tensor) -> Tensor:
    """Mean of each 2 x 2 pixels, where the sides are even."""
    return (h[:, :, ::2, ::2] + h[:, :, ::2, 1::2] + h[:, :, 1::2, ::2] + h[:, :, 1::2, 1::2]) / 4
