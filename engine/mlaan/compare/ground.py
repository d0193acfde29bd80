"""What all candidates share, and how they are made on it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from mlaan import data, models
from mlaan.build import choose_device
from mlaan.compare.candidates import CHECKPOINTED, Candidate, Refused, line_up, with_modules
from mlaan.compare.contenders import LEARNING_RATE, EndToEnd, segment_counts
from mlaan.compare.measure import Batch, flops
from mlaan.config import Config, MethodConfig, TrainConfig
from mlaan.config.values import show
from mlaan.data.source import ImageSource
from mlaan.engine import Engine
from mlaan.errors import UserError
from mlaan.execute import AUTOCAST, choose_kernels
from mlaan.execute.kernels import Kernels
from mlaan.models import Backbone
from mlaan_kernels.blocks import Settings
from mlaan_kernels.blocks.fused import FusedBlock

_COUNTED: dict[str, Any] = {
    "kernels": "reference",
    "precision": "float32",
    "weights": "float32",
    "executor": "eager",
    "compile": "off",
}
"""The arithmetic in which FLOPs are counted: on the meta device only PyTorch's own operators run."""
BATCHES = 2
"""Batches of random images that the rounds take in turn."""


class Ground:
    """What all candidates share: the config's network, images, device and arithmetic.

    The learning rate is small and the optimizer SGD with momentum for all, whatever optim.* says, so that the steps
    differ in nothing but how gradients are found.

    Raises:
        UserError: no such device or network, kernels that cannot be had, images that do not fit.
    """

    def __init__(self, config: Config) -> None:
        self.config = replace(config, optim=replace(Config().optim, learning_rate=LEARNING_RATE))
        assert isinstance(config.data, ImageSource)
        self.batch = config.data.batch
        facts = data.facts(config.data)
        self.classes, self.shape = facts.classes, facts.image_shape
        unknown = (0.5,) * self.shape[0]  # no time depends on it
        self.normalisation = (facts.mean or unknown, facts.std or unknown)
        self.device = choose_device(config.train.device)
        example = torch.empty(0, device=self.device)
        self.kernels: Kernels = choose_kernels(config.train.kernels, example, config.train.precision)
        self.channels_last = config.train.channels_last or self.kernels == "triton"
        meta = self.backbone(torch.device("meta"))
        meta.block_shapes(self.shape)
        self.blocks = len(meta.blocks)
        self._counted: dict[tuple[Candidate, int | None], int] = {}

    def backbone(self, device: torch.device) -> Backbone:
        """The network with weights drawn from train.seed, the same at every call."""
        torch.manual_seed(self.config.train.seed)
        channels, *size = self.shape
        with torch.device("meta" if device.type == "meta" else "cpu"):
            backbone = models.build(self.config.model.name, self.classes, channels, size)
        backbone.net.to(device)
        return backbone

    def batches(self) -> list[Batch]:
        """Random images (N, C, H, W) in the layout of the run, and labels (N,)."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        random = torch.Generator().manual_seed(0)
        return [
            (
                torch.randn(self.batch, *self.shape, generator=random).to(self.device, memory_format=layout),
                torch.randint(self.classes, (self.batch,), generator=random).to(self.device),
            )
            for _ in range(BATCHES)
        ]

    def make(
        self, candidate: Candidate, batch: Batch, segments: int | None = None
    ) -> tuple[Engine | EndToEnd, int | None]:
        """The candidate on the device, and its segments if it is checkpointed.

        Args:
            segments: if they are known; else those of the lowest peak on `batch` are looked for.

        Raises:
            UserError: its settings do not fit the network.
        """
        made = self._make(candidate, self.device, candidate.config.train)
        if candidate.family != CHECKPOINTED or isinstance(made, Engine):
            return made, None
        if segments is None:
            return made, made.split_best(segment_counts(self.blocks), batch)
        made.split(segments)
        return made, segments

    def flops(self, candidate: Candidate, segments: int | None) -> int:
        """FLOPs of the candidate's step, counted on the meta device with PyTorch's own operators."""
        config = candidate.config
        if config.memory.recompute not in ("once", "each"):  # all orders of the tasks then do the same
            config = with_modules(config, config.partition.modules, "lean")
        work = replace(candidate, config=config)
        if (work, segments) not in self._counted:
            meta = torch.device("meta")
            made = self._make(work, meta, replace(config.train, **_COUNTED))
            if segments and isinstance(made, EndToEnd):
                made.split(segments)
            images = torch.empty(self.batch, *self.shape, device=meta)
            labels = torch.empty(self.batch, dtype=torch.int64, device=meta)
            self._counted[work, segments] = flops(partial(made.gradients, images, labels))
        return self._counted[work, segments]

    def _make(self, candidate: Candidate, device: torch.device, train: TrainConfig) -> Engine | EndToEnd:
        backbone = self.backbone(device)
        config = candidate.config
        if candidate.is_local:
            return Engine.from_config(
                backbone,
                config.method,
                config.partition,
                config.memory,
                config.optim,
                self.shape,
                train=train,
                normalisation=self.normalisation,
            )
        if self.channels_last:
            cast(Any, backbone.net).to(memory_format=torch.channels_last)
        if not candidate.fused or train.kernels == "reference":
            return EndToEnd(backbone, train.precision)
        keep = config.memory.recompute == "none"
        settings = Settings(AUTOCAST.get(train.precision, torch.float32), self.kernels, keep_activations=keep)
        made = EndToEnd(backbone, train.precision, fused=True, settings=settings)
        if not any(isinstance(module, FusedBlock) for part in made.parts for module in part.modules()):
            raise UserError("nothing in this network has a fused form")
        return made

    def notes(self) -> list[str]:
        """What the settings give to the local learners alone."""
        train = self.config.train
        usual = {"executor": "eager", "compile": "off", "weights": "float32"}
        changed = [f"train.{key} = {show(getattr(train, key))}" for key in usual if getattr(train, key) != usual[key]]
        if not changed:
            return []
        return [
            f"{' and '.join(changed)}: for the local learners alone. End-to-end training can have the like from "
            "PyTorch; leave these settings out to compare on equal terms."
        ]

    def candidates(self, methods: Sequence[MethodConfig], modules: Sequence[int]) -> list[Candidate | Refused]:
        """See `line_up`."""
        return line_up(self.config, self.kernels, self.blocks, methods, modules)
