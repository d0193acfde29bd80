"""Which way a call of Heads runs: light heads and leap networks by fused kernels, all others over autograd."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from torch import Tensor

from mlaan.execute.heads import HeadResult, run_heads
from mlaan.execute.leaps import FusedLeaps
from mlaan.execute.light import run_light_heads
from mlaan.execute.module import Autocast
from mlaan.learning import LocalLoss, light_shape
from mlaan_kernels.blocks import Settings


class HeadCalls:
    """Runs the Heads of a supervision.

    Args:
        losses: of the supervision.
        autocast: the precision of what runs over autograd.
        settings: how fused kernels compute; None: all runs over autograd.

    Attributes:
        pools: the modules whose outputs' means over the pixels some head reads.
    """

    def __init__(
        self, losses: Sequence[LocalLoss], autocast: Autocast = nullcontext, settings: Settings | None = None
    ) -> None:
        self.losses, self.autocast, self.settings = losses, autocast, settings
        self.light = [settings is not None and light_shape(loss) is not None for loss in losses]
        self.pools = {loss.module for loss, light in zip(losses, self.light, strict=True) if light}
        self.leaps: dict[tuple[int, ...], FusedLeaps | None] = {}

    def run(
        self,
        places: Sequence[int],
        outputs: Mapping[int, Tensor],
        pooled: Mapping[int, Tensor],
        images: Tensor,
        labels: Tensor,
        scales: Mapping[int, Tensor] | None = None,
    ) -> list[HeadResult]:
        """Losses that share a call.

        Args:
            places: theirs in the supervision.
            outputs: of each module.
            pooled: the mean of its pixels, for those that gave it along.
            scales: for each place the factor, 0-dim, of the cotangent that comes back; none: 1.
        """
        results: dict[int, HeadResult] = {}
        for some in self._calls(places, outputs):
            losses = [self.losses[place] for place in some]
            if self.light[some[0]]:
                found = run_light_heads(losses, outputs, pooled, labels)
                if scales is not None:
                    pairs = zip(found, some, strict=True)
                    found = [one._replace(cotangent=one.cotangent.scaled(scales[place])) for one, place in pairs]
            else:
                tapped = [outputs[loss.module] for loss in losses]
                factors = None if scales is None else [scales[place] for place in some]
                leaps = self._leaps(losses)
                if leaps is not None:
                    found = leaps.run(losses, tapped, labels, factors)
                else:
                    found = self._over_autograd(losses, tapped, images, labels, factors)
            results |= dict(zip(some, found, strict=True))
        return [results[place] for place in places]

    def _calls(self, places: Sequence[int], outputs: Mapping[int, Tensor]) -> list[list[int]]:
        """Light heads together whatever their maps' size, others of one size."""
        calls: dict[object, list[int]] = {}
        for place in places:
            key = None if self.light[place] else outputs[self.losses[place].module].shape
            calls.setdefault(key, []).append(place)
        return list(calls.values())

    def _over_autograd(
        self,
        losses: Sequence[LocalLoss],
        tapped: Sequence[Tensor],
        images: Tensor,
        labels: Tensor,
        factors: Sequence[Tensor] | None,
    ) -> list[HeadResult]:
        """One network after the other, each once for all its modules."""
        results: dict[int, HeadResult] = {}
        for head in {id(loss.head): None for loss in losses}:
            own = [i for i, loss in enumerate(losses) if id(loss.head) == head]
            some, outputs = [losses[i] for i in own], [tapped[i] for i in own]
            scale = None if factors is None else factors[own[0]]  # one for all that share a head
            found = run_heads(some, outputs, images, labels, self.autocast, scale)
            results |= dict(zip(own, found, strict=True))
        return [results[i] for i in range(len(losses))]

    def _leaps(self, losses: Sequence[LocalLoss]) -> FusedLeaps | None:
        if self.settings is None or any(loss.criterion is not losses[0].criterion for loss in losses):
            return None
        key = tuple(id(loss.head) for loss in losses)
        if key not in self.leaps:
            self.leaps[key] = FusedLeaps.of(losses, self.settings)
        return self.leaps[key]
