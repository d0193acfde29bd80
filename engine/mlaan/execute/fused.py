"""A local module's work by fused kernels where its blocks have them, over autograd where not."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from mlaan.execute.module import Autocast, AutogradModule, Passed
from mlaan_kernels.blocks import Chain, Cotangent, Grads, Settings, add_grads, backward, make_chain

TOGETHER = 2
"""Cotangents that the kernels carry in one read."""


class FusedModule:
    """The work of a local module whose parts run one after another.

    Args:
        module: stem and blocks.
        settings: how the fused ones compute.
        autocast: the precision of the others.
        over_autograd: runs the others.

    Attributes:
        plain: the parts that have weights and no fused form.
    """

    def __init__(
        self,
        module: nn.Sequential,
        settings: Settings,
        autocast: Autocast = nullcontext,
        over_autograd: type[AutogradModule] = AutogradModule,
    ) -> None:
        self.over_autograd = over_autograd
        self.parts: list[Chain | AutogradModule] = []
        self.plain: list[nn.Module] = []
        plain: list[nn.Module] = []
        for part in module:
            chain = make_chain(part, settings)
            if chain is None:
                plain.append(part)
                continue
            self._end_plain(plain, autocast)
            self.parts.append(chain)
        self._end_plain(plain, autocast)
        self.weights: list[nn.Parameter] = [weight for weight in module.parameters() if weight.requires_grad]

    def _end_plain(self, plain: list[nn.Module], autocast: Autocast) -> None:
        self.plain += [part for part in plain if any(True for _ in part.parameters())]
        if plain:
            self.parts.append(self.over_autograd(nn.Sequential(*plain), autocast))
            plain.clear()

    def forward(self, x: Tensor, keep: bool, pool: bool = False) -> Passed:
        """See ModuleWork. `saved` is a list of what each part keeps."""
        saved: list[Any] = []
        pooled = None
        for part in self.parts:
            x, kept, pooled = part.forward(x, keep, pool and part is self.parts[-1])
            saved.append(kept)
        return Passed(x, saved if keep else None, pooled)

    def backward(
        self,
        saved: list[Any],
        cotangents: Sequence[Cotangent],
        need_input: Sequence[bool],
        need_weight: bool,
        keep: bool,
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """See ModuleWork. The sum of all groups, for the weights, and each group that goes on travel side by side.

        Without `keep`, `saved` is let go of part by part.
        """
        wanted = [place for place, need in enumerate(need_input) if need]
        carried = [cotangents[place] for place in wanted]
        if need_weight and len(cotangents) == 1:
            carried, needs = [cotangents[0]], [need_input[0]]
        elif need_weight:
            total = cotangents[0]
            for cotangent in cotangents[1:]:
                total = total + cotangent
            carried, needs = [total, *carried], [False, *[True] * len(wanted)]
        else:
            needs = [True] * len(carried)
        grads: Grads = {}
        for place in reversed(range(len(self.parts))):
            first = place == 0
            needed = needs if first else [True] * len(carried)
            carried, found = _carry(self.parts[place], saved[place], carried, needed, need_weight, keep)
            add_grads(grads, found)
            if not keep:
                saved[place] = None
        inputs: list[Tensor | None] = [None] * len(cotangents)
        onward = [cotangent for cotangent, need in zip(carried, needs, strict=True) if need]
        for place, cotangent in zip(wanted, onward, strict=True):
            inputs[place] = cotangent.dense
        return inputs, [grads.get(weight) for weight in self.weights] if need_weight else []


def _carry(
    part: Chain | AutogradModule,
    saved: Any,
    cotangents: Sequence[Cotangent],
    need_input: Sequence[bool],
    need_weight: bool,
    keep: bool,
) -> tuple[list[Cotangent], Grads]:
    """Cotangents at a part's input, empty where none is needed, and its weights' gradients for the first of them."""
    if isinstance(part, Chain):
        grads: Grads = {}
        inputs: list[Cotangent | None] = []
        for start in range(0, len(cotangents), TOGETHER):
            now = slice(start, start + TOGETHER)
            if (need_weight and not start) or any(need_input[now]):
                some, found = backward(part, saved, cotangents[now], need_input[now], need_weight and not start)
                add_grads(grads, found)
            else:
                some = [None] * len(cotangents[now])
            inputs += some
        return [cotangent or Cotangent() for cotangent in inputs], grads
    later = list(range(1 if need_weight else 0, len(cotangents)))
    dense: list[Tensor | None] = [None] * len(cotangents)
    if later:
        some = [cotangents[i] for i in later]
        found_inputs, _ = part.backward(saved, some, [need_input[i] for i in later], False, keep or need_weight)
        for i, one in zip(later, found_inputs, strict=True):
            dense[i] = one
    found_grads: list[Tensor | None] = []
    if need_weight:
        [dense[0]], found_grads = part.backward(saved, cotangents[:1], need_input[:1], True, keep)
    pairs = zip(part.weights, found_grads, strict=True) if need_weight else ()
    return [Cotangent(dense=one) for one in dense], {weight: grad for weight, grad in pairs if grad is not None}
