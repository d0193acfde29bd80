"""A backbone: the network a user wants, seen as stem, ordered blocks and classifier."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlaan.errors import UserError
from mlaan.models.meta import on_meta


@dataclass(frozen=True)
class Block:
    """One block of a backbone.

    `stage` counts from 1 and `index` from 0 inside the stage, so that the published leap tables' "2.0" is
    stage 2, index 0. A backbone without stages has one.
    """

    module: nn.Module
    stage: int
    index: int

    @property
    def label(self) -> str:
        return f"{self.stage}.{self.index}"


class Backbone:
    """A view of a network; it owns no parameter and renames none.

    Args:
        net: the network itself: its `forward` maps images (N, C, H, W) to logits (N, classes), and its state dict's
            names are those of every checkpoint and export.
        stem: what runs before the first block; it belongs to local module 0.
        blocks: the blocks in order. Between them nothing else may happen: block i+1 reads block i's output alone.
        classifier: what turns the last block's output into logits.
        stages: the stage of each block, counting from 1 and never falling; one stage if left out.
        name: how messages and tables call it.

    Raises:
        UserError: no blocks, a wrong number of stages, or a parameter of `net` that no part reaches.
    """

    def __init__(
        self,
        net: nn.Module,
        stem: nn.Module,
        blocks: Sequence[nn.Module],
        classifier: nn.Module,
        *,
        stages: Sequence[int] | None = None,
        name: str | None = None,
    ) -> None:
        stages = list(stages) if stages is not None else [1] * len(blocks)
        if not blocks:
            raise UserError("blocks = [] is empty: a backbone needs at least one block")
        if len(stages) != len(blocks) or stages != sorted(stages):
            raise UserError(f"stages = {stages} must name a stage for each of {len(blocks)} blocks, never falling")
        self.net, self.stem, self.classifier = net, stem, classifier
        first = {stage: stages.index(stage) for stage in stages}
        self.blocks = tuple(
            Block(module, stage, i - first[stage]) for i, (module, stage) in enumerate(zip(blocks, stages, strict=True))
        )
        self.name = name or type(net).__name__
        parts = [stem, *blocks, classifier]
        reached = {id(p) for part in parts for p in part.parameters()}
        for key, parameter in net.named_parameters():
            if id(parameter) not in reached:
                raise UserError(f"parameter {key!r} of {self.name} is in no stem, block or classifier: list its part")

    @property
    def last_layer(self) -> nn.Linear | nn.Conv2d:
        """The classifier's last linear layer or convolution."""
        layers = [m for m in self.classifier.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        if not layers:
            raise UserError(f"the classifier of {self.name} has no nn.Linear: its number of classes cannot be told")
        return layers[-1]

    @property
    def num_classes(self) -> int:
        """Width of the classifier's last layer."""
        return len(self.last_layer.weight)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W), through stem, blocks and classifier in the net's own mode."""
        h = self.stem(images)
        for block in self.blocks:
            h = block.module(h)
        return self.classifier(h)

    def block_shapes(self, image_shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Output shape of every block without its batch dimension, for one image of `image_shape` (C, H, W).

        Computed on the meta device: no arithmetic, no state moved.

        Raises:
            UserError: the images do not fit the stem, a block or the classifier does not take what comes before it, a
                block gives no tensor, or it changes its input in place: the output of the block before it, which a
                head may still read.
        """
        dtype = next(self.net.parameters()).dtype
        h = torch.empty(2, *image_shape, device="meta", dtype=dtype)
        shapes = []
        part = "stem"
        try:
            h = on_meta(self.stem)(h)
            for block in self.blocks:
                part = f"block {block.label}"
                h = on_meta(block.module)(h.detach().requires_grad_())
                if not isinstance(h, Tensor):
                    raise UserError(f"{part} of {self.name} gives a {type(h).__name__}: a block gives one tensor")
                shapes.append(tuple(h.shape[1:]))
            part = "classifier"
            on_meta(self.classifier)(h.detach().requires_grad_())
        except RuntimeError as error:
            if "in-place" in str(error):
                raise UserError(
                    f"{part} of {self.name} changes its input in place: build it with inplace=False"
                ) from error
            images = f"images of {'x'.join(map(str, image_shape))}"
            if part == "stem":
                form = "C x H x W" if len(image_shape) == 3 else "C x H x W, without the batch"
                message = f"{images} ({form}) do not fit {self.name}: {error}"
            else:
                before = f"the {tuple(h.shape[1:])} that comes before it"
                message = f"model = {self.name}: {part} does not take {before}, for {images}: {error}"
            raise UserError(message.splitlines()[0]) from error
        return shapes
