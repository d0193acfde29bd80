"""End-to-end training, plain and checkpointed, and how any contender's peak memory is taken on equal terms."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mlaan.compare.measure import Batch, peak_memory
from mlaan.engine import Engine
from mlaan.execute import arithmetic, make_autocast
from mlaan.learning import cut
from mlaan.models import Backbone
from mlaan_kernels.blocks import Settings, fuse

# Small, so that no contender runs off into infinities or denormals, which take another time, on random images.
LEARNING_RATE = 1e-4
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
SEGMENTS_TRIED = (2, 3, 4, 5, 6, 8, 10, 12)  # and as many as there are blocks


class Contender(Protocol):
    """A training step on equal terms with the others."""

    def step(self, images: Tensor, labels: Tensor) -> object:
        """Forward, gradients and update on images (N, C, H, W) and labels (N,) int64."""
        ...


class Listed(Contender, Protocol):
    """A contender that says which weights it trains; an Engine has them by its parts."""

    @property
    def trained(self) -> Iterable[nn.Parameter]: ...


class EndToEnd:
    """A plain training step; with more than one segment, all but the last are checkpointed.

    As usual with torch.utils.checkpoint, recomputing a segment moves its running statistics once more.

    Args:
        precision: as `train.precision`; float16 with torch's GradScaler.
        fused: run our fused blocks, where the network has blocks that have a fused form.
        settings: how they compute; by default, as `mlaan_kernels.blocks.fuse` has it.
    """

    def __init__(
        self,
        backbone: Backbone,
        precision: str = "float32",
        fused: bool = False,
        settings: Settings | None = None,
    ) -> None:
        self.backbone, self.net, self.classifier = backbone, backbone.net.train(), backbone.classifier
        self.precision, self.fused, self.settings = precision, fused, settings
        example = next(self.net.parameters())
        self.autocast = make_autocast(precision, example)
        self.scaler = GradScaler(example.device.type, enabled=precision == "float16")
        self.updates_in_the_backward = False
        self.split(1)
        self.optimizer = torch.optim.SGD(
            self.trained, LEARNING_RATE, MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY, fused=True
        )

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weights that move."""
        return [weight for weight in self.net.parameters() if weight.requires_grad]

    @contextmanager
    def updating_in_the_backward(self) -> Iterator[None]:
        """Each weight moves as soon as its gradient is there, and the gradient goes: the least memory."""
        one_each = {
            weight: torch.optim.SGD([weight], LEARNING_RATE, MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
            for weight in self.trained
        }
        for weight, optimizer in one_each.items():
            optimizer.state[weight] = self.optimizer.state[weight]

        def update(weight: Tensor) -> None:
            if weight.grad is not None and self.scaler.is_enabled():
                weight.grad.div_(self.scaler.get_scale())
            one_each[cast(nn.Parameter, weight)].step()
            weight.grad = None

        hooks = [weight.register_post_accumulate_grad_hook(update) for weight in one_each]
        self.updates_in_the_backward = True
        try:
            yield
        finally:
            self.updates_in_the_backward = False
            for hook in hooks:
                hook.remove()

    def split(self, segments: int) -> None:
        """From now on checkpoint by so many runs of blocks."""
        self.parts: list[Any] = list(cut(self.backbone, segments).modules(self.backbone))
        if self.fused:
            self.parts = list(cast(nn.Sequential, fuse(nn.Sequential(*self.parts), self.settings)))

    def split_best(self, counts: Sequence[int], batch: Batch) -> int:
        """Checkpoint by the count whose step on `batch` has the lowest peak, and tell it; no weight has moved then."""
        start = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        self.step(*batch)  # momenta are there before a peak is taken
        peaks = {}
        for segments in counts:
            self.split(segments)
            peaks[segments] = step_peak(self, batch)
        best = min(peaks, key=peaks.__getitem__)
        self.split(best)
        self.net.load_state_dict(start)
        self.optimizer.state.clear()
        return best

    def compile(self) -> None:
        """From now on run what torch.compile makes of the network."""
        self.parts = [torch.compile(nn.Sequential(*self.parts))]

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """See Contender; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients(images, labels)
        if not self.updates_in_the_backward:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return loss

    def gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """The step up to the update: gradients are added to `.grad`, float16's still scaled; returns the loss."""
        with arithmetic(self.precision):
            h = images
            with self.autocast():
                for part in self.parts[:-1]:
                    h = checkpoint(part, h, use_reentrant=False)
                loss = F.cross_entropy(self.classifier(self.parts[-1](h)), labels)
            self.scaler.scale(loss).backward()
        return loss.detach()


def segment_counts(blocks: int) -> list[int]:
    """The numbers of checkpointed segments to try for so many blocks; none for a single block."""
    return sorted({count for count in SEGMENTS_TRIED if count < blocks} | ({blocks} if blocks > 1 else set()))


def step_peak(contender: Contender, batch: Batch) -> int:
    """Peak bytes of one step above what it found; it finds no gradients, so that those it makes are in the figure.

    Ours updates a module as soon as its gradients are complete. For equal terms the end-to-end contenders update each
    weight in the backward here, so that they hold no more gradients than they must.
    """
    for weight in trained_weights(contender):
        weight.grad = None
    if isinstance(contender, EndToEnd):
        with contender.updating_in_the_backward():
            return peak_memory(lambda: contender.step(*batch), batch[0].device)
    return peak_memory(lambda: contender.step(*batch), batch[0].device)


def trained_weights(contender: Contender) -> list[nn.Parameter]:
    """Every weight that the contender's steps move by a gradient, once: its network's, its heads', not its twins."""
    if isinstance(contender, Engine):
        both = (*contender.backbone.net.parameters(), *contender.heads.parameters())
        return list(dict.fromkeys(weight for weight in both if weight.requires_grad))
    return list(cast(Listed, contender).trained)
