"""What comes from outside is looked at before anything moves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan.errors import UserError
from mlaan.learning import LocalLoss, Partition, Supervision
from mlaan.models import Backbone, on_meta

_OFF = 1e-3
"""How far the sum of probabilities may be from 1: bfloat16's own are."""


class BatchCheck:
    """Holds batches against what an engine was made for.

    Args:
        backbone: its first weight tells dtype and device.
        input_shape: (C, H, W) of one image.
        channels_last: lay images out as (N, H, W, C) in memory.
        sizes: further (H, W) that images may have.

    Raises:
        UserError: the weights are neither float32 nor float64, or the network, a head or a loss is made for one size
            alone.
    """

    def __init__(
        self,
        backbone: Backbone,
        partition: Partition,
        supervision: Supervision,
        input_shape: Sequence[int],
        *,
        channels_last: bool = False,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone, self.partition, self.supervision = backbone, partition, supervision
        self.input_shape, self.classes = tuple(input_shape), backbone.num_classes
        example = next(backbone.net.parameters())
        self.device, self.dtype = example.device, example.dtype
        if self.dtype not in (torch.float32, torch.float64):
            raise UserError(f"the model's weights are {self.dtype}: make it float32 or float64")
        channels = self.input_shape[0]
        self.shapes = {self.input_shape, *((channels, *size) for size in sizes)}
        for shape in sorted(self.shapes - {self.input_shape}):
            self._try_size(shape)

    def __call__(self, images: Tensor, labels: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
        """The batch on the engine's device.

        Labels are (N,) int64 classes or, in training, (N, classes) probabilities, which get the weights' dtype. Those
        that lie on the CPU are looked at one by one; on a GPU that would wait for the device.

        Raises:
            UserError: the batch does not fit; the message says what was found and what is wanted.
        """
        for name, value in (("images", images), ("labels", labels)):
            if not isinstance(value, Tensor):
                raise UserError(
                    f"{name} are a {type(value).__name__}: make them a tensor, such as torch.as_tensor({name})"
                )
        if tuple(images.shape[1:]) not in self.shapes:
            found, made = ("x".join(map(str, shape)) for shape in (images.shape[1:], self.input_shape))
            raise UserError(f"images of {found} (C x H x W) came to an engine made for {made}: set input_shape")
        if images.dtype != self.dtype:
            raise UserError(f"images are {images.dtype}, the model's weights {self.dtype}: normalise and convert them")
        if training and labels.ndim == 2 and labels.is_floating_point():
            return self._on_device(images, self._probabilities(labels, len(images)))
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise UserError(
                f"labels of shape {tuple(labels.shape)} and {labels.dtype} do not go with {images.shape[0]} images: "
                "give one int64 class for each, or in training a row of probabilities"
            )
        if not labels.numel():
            raise UserError("the batch is empty: leave it out")
        if labels.device.type == "cpu":
            low, high = (int(value) for value in labels.aminmax())
            if low < 0 or high >= self.classes:
                wrong = low if low < 0 else high
                raise UserError(f"label {wrong} is not from 0 to {self.classes - 1}, the model's classes")
        if training and images.shape[0] == 1:
            self._check_single()
        return self._on_device(images, labels)

    def _on_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.device, non_blocking=True, memory_format=self.memory_format)
        return images, labels.to(self.device, non_blocking=True)

    def _probabilities(self, labels: Tensor, count: int) -> Tensor:
        """Soft labels in the weights' dtype; raises UserError where they do not do."""
        if labels.shape != (count, self.classes):
            raise UserError(
                f"soft labels of shape {tuple(labels.shape)} do not go with {count} images of {self.classes} classes: "
                "give a row of probabilities for each image"
            )
        if not count:
            raise UserError("the batch is empty: leave it out")
        for loss in self.supervision.losses:
            if loss.needs_classes:
                raise UserError(
                    f"the loss {loss.name} compares images by their class: give int64 labels, not soft ones"
                )
        if labels.device.type == "cpu":
            off = (labels.sum(1) - 1).abs().max() if (labels >= 0).all() else labels.min()
            if not abs(float(off)) <= _OFF:
                raise UserError("a row of the soft labels is no probabilities: they are not negative and sum to 1")
        if count == 1:
            self._check_single()
        return labels.to(self.dtype)

    def _check_single(self) -> None:
        """One image is enough for a step unless a BatchNorm sees it as one pixel: tried on the meta device."""
        try:
            self._run_on_meta(torch.empty(1, *self.input_shape, device="meta", dtype=self.dtype))
        except ValueError as error:
            raise UserError(
                f"a batch of one image is too small for a BatchNorm ({error}): use larger batches, drop_last=True"
            ) from None

    def _try_size(self, shape: tuple[int, ...]) -> None:
        try:
            self._run_on_meta(torch.empty(2, *shape, device="meta", dtype=self.dtype))
        except (RuntimeError, ValueError, AssertionError) as error:
            found, made = ("x".join(map(str, one[1:])) for one in (shape, self.input_shape))
            raise UserError(
                f"images of {found} do not go through {self.backbone.name} with these heads, which are made for {made} "
                f"alone ({' '.join(str(error).split())[:200]}): set data.start_size = 0, or choose another method.name"
            ) from None

    def _run_on_meta(self, images: Tensor) -> None:
        """Everything that a step computes forward, on the meta device."""
        losses: dict[int, list[LocalLoss]] = {}
        for loss in self.supervision.losses:
            losses.setdefault(self.partition.spans[loss.module][1] - 1, []).append(loss)
        labels = torch.zeros(len(images), device="meta", dtype=torch.int64)
        h = on_meta(self.backbone.stem)(images)
        for i, block in enumerate(self.backbone.blocks):
            h = on_meta(block.module)(h)
            for loss in losses.get(i, []):
                loss.criterion(on_meta(loss.head)(h), images, labels)
