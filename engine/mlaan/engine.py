"""The engine: a backbone, a method and a memory policy in, exact training steps out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import signature
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor, nn

from mlaan.config import MemoryConfig, MethodConfig, OptimConfig, PartitionConfig, TrainConfig, make
from mlaan.errors import UserError
from mlaan.evaluation import Evaluation, evaluate
from mlaan.execute import (
    AUTOCAST,
    BatchCheck,
    EagerExecutor,
    GraphExecutor,
    HeadCalls,
    LossScale,
    ModuleState,
    arithmetic,
    choose_kernels,
    make_autocast,
    make_executor,
    make_work,
    shorten,
)
from mlaan.keywords import method_of, optim_of
from mlaan.learning import Method, Normalisation, Site, cut
from mlaan.models import Backbone, as_backbone, borrowed
from mlaan.optim.average import WeightAverage, average_bytes
from mlaan.optim.optimizer import Optimizer
from mlaan.optim.states import state_bytes
from mlaan.plan import build_graph, head_homes, make_plan
from mlaan.plan.groups import update_groups
from mlaan.plan.lanes import LanePlan
from mlaan.plan.machine import Machine
from mlaan.plan.placing import machine_like, place
from mlaan.plan.report import Planned, report
from mlaan_kernels.blocks import Settings


@dataclass(frozen=True)
class StepResult:
    """What a training step saw; tensors on the device, so that reading them is the caller's choice.

    Attributes:
        losses: (L,) every local loss, unweighted, in the order of `Engine.loss_names`.
        correct: (L,) int64, right top-1 answers of each head in this batch; 0 where a head gives no logits
            (`Engine.loss_predicts`).
        samples: images in the batch.
    """

    losses: Tensor
    correct: Tensor
    samples: int

    @property
    def accuracy(self) -> Tensor:
        """(L,) top-1 accuracy of each head, 0 to 1."""
        return self.correct / self.samples


class Engine:
    """Trains a network by supervised local learning.

    Args:
        model: a ResNet of this package or torchvision, a `Backbone`, or any module with `stem`, `blocks` and
            `classifier`. It is trained in place, on the device where its weights are, all of it in training mode;
            weights with requires_grad = False stay.
        method: "mlaan", "dgl", "end_to_end", or a config object such as `MLAAN(preset="light", reach=3)`.
        modules: number K of local modules.
        input_shape: (C, H, W) of one image.
        cuts: "even", "flops", "bytes", "published", or the first block of every module.
        schedule, window, recompute: what is kept between forward and backward; see `MemoryConfig`.
        normalisation: mean and standard deviation of the images' channels (where the largest pixel value counts as
            1), for methods that rebuild the image.
        precision: "float32" keeps the weights' own; "bfloat16" and "float16" run modules and heads under autocast,
            while weights, losses and updates stay as they are; see `TrainConfig`.
        weights: "bfloat16" turns convolutions' and linear layers' weights into that; see `TrainConfig`.
        channels_last: lay weights and images out as (N, H, W, C) in memory; Triton kernels have it so in any case.
        kernels: "auto", "reference" or "triton"; see `TrainConfig`. `engine.kernels` tells what it came to.
        executor: "eager", "streams" or "graph"; see `TrainConfig`.
        compile: "off" or "modules"; see `TrainConfig`.
        accumulate: parts that every batch is cut into before one update, as even as it goes and of at least two
            images; see `TrainConfig`.
        average: decay of a moving average of the weights, which `evaluate` takes; 0: none. See `TrainConfig`.
        sizes: further (H, W) of images that may come, beside those of `input_shape`.
        optim: "sgd", "lars", "adamw", "lamb", or a config object such as `AdamWConfig(learning_rate=1e-3)`.
        learning_rate, momentum, nesterov, weight_decay: of the optimizer named, where it has them.
            `engine.learning_rate` may be set before any step.
        options: fields of the named method's config, such as `reach=3`.

    Raises:
        UserError: settings that do not fit each other or the model; the message names the one to change.
    """

    def __init__(
        self,
        model: nn.Module | Backbone,
        method: str | MethodConfig = "mlaan",
        modules: int = 4,
        *,
        input_shape: Sequence[int] = (3, 32, 32),
        cuts: str | Sequence[int] = "even",
        schedule: str = "lean",
        window: int = 0,
        recompute: str = "none",
        normalisation: Normalisation | None = None,
        precision: str = "float32",
        channels_last: bool = False,
        kernels: str = "auto",
        weights: str = "float32",
        executor: str = "eager",
        compile: str = "off",
        accumulate: int = 1,
        average: float = 0.0,
        sizes: Sequence[tuple[int, int]] = (),
        optim: str | OptimConfig = "sgd",
        learning_rate: float | None = None,
        momentum: float | None = None,
        nesterov: bool | None = None,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        chosen = method_of(method, options, list(signature(Engine.__init__).parameters))
        if not isinstance(input_shape, Sequence):
            raise UserError(f"input_shape = {input_shape!r} must be (C, H, W), such as (3, 32, 32)")
        memory = make(MemoryConfig, "memory", schedule=schedule, window=window, recompute=recompute)
        numbers = {"learning_rate": learning_rate, "momentum": momentum, "nesterov": nesterov}
        optim = optim_of(optim, numbers | {"weight_decay": weight_decay})
        partition = make(
            PartitionConfig, "partition", modules=modules, cuts=cuts if isinstance(cuts, str) else tuple(cuts)
        )
        layout = make(
            TrainConfig,
            "train",
            precision=precision,
            channels_last=channels_last,
            kernels=kernels,
            weights=weights,
            executor=executor,
            compile=compile,
            accumulate=accumulate,
            average=average,
        )
        backbone = as_backbone(model, tuple(input_shape))
        self._assemble(backbone, chosen, partition, memory, optim, layout, tuple(input_shape), normalisation, sizes)

    @classmethod
    def from_config(
        cls,
        backbone: Backbone,
        method: MethodConfig,
        partition: PartitionConfig,
        memory: MemoryConfig,
        optim: OptimConfig,
        input_shape: Sequence[int],
        *,
        train: TrainConfig | None = None,
        normalisation: Normalisation | None = None,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> "Engine":
        """An engine out of config sections, as the command line makes it; of `train` it takes how a step is run."""
        engine = cls.__new__(cls)
        train = train or TrainConfig()
        engine._assemble(backbone, method, partition, memory, optim, train, tuple(input_shape), normalisation, sizes)
        return engine

    def _assemble(
        self,
        backbone: Backbone,
        method: MethodConfig,
        partition: PartitionConfig,
        memory: MemoryConfig,
        optim: OptimConfig,
        train: TrainConfig,
        input_shape: tuple[int, ...],
        normalisation: Normalisation | None,
        sizes: Sequence[tuple[int, int]],
    ) -> None:
        self.backbone, self.method, self.input_shape = backbone, method, input_shape
        block_shapes = backbone.block_shapes(input_shape)
        self.partition = cut(backbone, partition.modules, partition.cuts, input_shape)
        modules = self.partition.modules(backbone)
        example = next(backbone.net.parameters())
        self.device = example.device
        self.site = Site(backbone, self.partition, block_shapes, input_shape, normalisation)
        self.supervision = cast(Method, method).supervise(self.site)
        self.supervision.check(len(modules))
        self.heads = nn.ModuleList(head for head in self.supervision.heads if head is not backbone.classifier)
        self.heads.to(example)
        self.kernels = choose_kernels(train.kernels, example, train.precision)
        channels_last = train.channels_last or self.kernels == "triton"
        if channels_last:  # after all weights are drawn: the same seed then gives the same ones in any layout
            for net in (backbone.net, self.heads):
                cast(Any, net).to(memory_format=torch.channels_last)
        self.autocast, self.precision = make_autocast(train.precision, example), train.precision
        self.dtype: torch.dtype = AUTOCAST.get(train.precision, example.dtype)
        self.batch_check = BatchCheck(
            backbone, self.partition, self.supervision, input_shape, channels_last=channels_last, sizes=sizes
        )
        self.accumulate = train.accumulate
        if train.accumulate > 1 and train.executor != "eager":
            raise UserError(
                f"train.accumulate = {train.accumulate} runs a batch's parts task by task, which train.executor = "
                f"{train.executor!r} does not: set train.executor = 'eager'"
            )
        masters = shorten((backbone.net, self.heads), torch.bfloat16) if train.weights == "bfloat16" else {}
        self.settings = None
        asked = train.kernels == "triton" or memory.recompute == "fused"
        if self.kernels == "triton" or memory.recompute == "fused":
            self.settings = Settings(self.dtype, self.kernels, keep_activations=memory.recompute == "none")
        graph = build_graph(len(modules), self.supervision, modules, global_norm=optim.clip == "global")
        self.plan = make_plan(graph, memory.schedule, memory.window, memory.recompute)
        self.loss_names = tuple(loss.name for loss in self.supervision.losses)
        self.loss_modules = tuple(loss.module for loss in self.supervision.losses)
        self.loss_predicts = tuple(loss.predicts for loss in self.supervision.losses)
        self.state_bytes = state_bytes(optim, torch.bfloat16 if masters else example.dtype)
        groups = update_groups(modules, self.supervision, self._names())
        self.optimizer = Optimizer(groups, self.supervision.twins, self._names(), optim, masters)
        masters = self.optimizer.states.masters
        self.average = WeightAverage(backbone.net, train.average, masters) if train.average else None
        self.loss_scale = None
        if train.precision == "float16":
            home = head_homes(self.supervision)
            homes = [home[id(loss.head)] for loss in self.supervision.losses]
            self.loss_scale = LossScale(graph, homes, self.device)
        self.executor = make_executor(
            train.executor,
            self.device,
            self._lanes_for,
            self.optimizer.prepare,
            plan=self.plan,
            supervision=self.supervision,
            work=make_work(modules, self.settings, self.autocast, asked=asked, compiled=train.compile == "modules"),
            states=[ModuleState(module, self._moves(i, module)) for i, module in enumerate(modules)],
            optimizer=self.optimizer,
            weights=groups,
            heads=HeadCalls(self.supervision.losses, self.autocast, self.settings),
            kernels=self.kernels,
            loss_scale=self.loss_scale,
        )
        self.optimizer.on_device(isinstance(self.executor, GraphExecutor))
        self._train_mode()

    def step(self, images: Tensor, labels: Tensor) -> StepResult:
        """One training step: forward, all local losses, their gradients, and the update of twins and weights.

        Args:
            images: (N, C, H, W) of the model's dtype, on any device.
            labels: (N,) int64, each from 0 to classes - 1; or (N, classes) probabilities of a float dtype, which the
                right answers are counted by the likeliest of.

        Raises:
            UserError: the batch does not fit; nothing has moved then.
        """
        return self._run(images, labels, update=True)

    def gradients(self, images: Tensor, labels: Tensor) -> StepResult:
        """The same step up to the update: gradients are added to `.grad`; weights and twins stay, statistics move."""
        return self._run(images, labels, update=False)

    def _run(self, images: Tensor, labels: Tensor, *, update: bool) -> StepResult:
        images, labels = self.batch_check(images, labels, training=True)
        # no part of one image, which BatchNorm could not do with, where bad files left a batch short
        parts = min(self.accumulate, max(1, len(images) // 2)) if update else 1
        with arithmetic(self.precision):
            if parts > 1:
                assert isinstance(self.executor, EagerExecutor)
                cut_up = zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)
                losses, correct = self.executor.run_parts(list(cut_up))
            else:
                losses, correct = self.executor.run(images, labels, update=update)
        if update and self.average is not None:
            self.average.update()
        return StepResult(losses, correct, images.shape[0])

    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
        """The backbone alone, in evaluation mode, on (images, labels) batches; with its average, if there is one.

        Raises:
            UserError: no batch came.
        """
        weights = None if self.average is None else self.average.weights()
        arithmetic: Any = {"autocast": self.autocast, "precision": self.precision}
        try:
            return evaluate(self.backbone.net, batches, self.batch_check, **arithmetic, weights=weights)
        finally:
            self._train_mode()

    def take_average(self) -> None:
        """Makes the averaged weights the backbone's own, for its export; there is no going on with training then."""
        if self.average is not None:
            self.backbone.net.load_state_dict(self.average.weights())
            self.average = None

    @property
    def learning_rate(self) -> float:
        """Read at every step; set it for a schedule of your own."""
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if not isinstance(value, Real) or not 0 <= value < math.inf:
            raise UserError(f"learning_rate = {value!r} must be a finite number, 0 or more")
        self.optimizer.learning_rate = float(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps and tests depend on: backbone, heads with twins, optimizer, learning rate, loss
        scales, average of the weights.

        Tensors, numbers and strings only, so that it loads with `weights_only=True`. The values are the live
        tensors: copy or save them before the next step.
        """
        return {
            "made_for": self.signature(),
            "backbone": self._exact("backbone", self.backbone.net),
            "heads": self._exact("heads", self.heads),
            "optimizer": self.optimizer.state_dict(),
            "learning_rate": self.learning_rate,
            "loss_scale": {} if self.loss_scale is None else self.loss_scale.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`'s values.

        Raises:
            UserError: the state is of another model, partition or method; nothing has been changed then.
        """
        if state.get("made_for") != self.signature():
            made, here = state.get("made_for"), self.signature()
            raise UserError(f"this state was made for {made}, but the engine is for {here}: use the run's own config")
        own_scale = {} if self.loss_scale is None else self.loss_scale.state_dict()
        for part, own in (
            ("backbone", self.backbone.net.state_dict()),
            ("heads", self.heads.state_dict()),
            ("loss_scale", own_scale),
        ):
            given = state.get(part, {})
            for key in [*own, *given]:
                if key not in own or key not in given or own[key].shape != given[key].shape:
                    raise UserError(f"{part}.{key} of the state does not fit {self.backbone.name}: another model's?")
        rate = state.get("learning_rate")
        if not isinstance(rate, float) or not 0 <= rate < math.inf:
            raise UserError(f"learning_rate = {rate!r} of the state is no rate: another file's?")
        if bool(state.get("loss_scale")) != (self.loss_scale is not None):
            raise UserError("the state and the engine differ in train.precision = 'float16': use the run's own config")
        average = state.get("average", {})
        if bool(average) != (self.average is not None):
            raise UserError("the state and the engine differ in train.average being 0: use the run's own config")
        if self.average is not None:
            self.average.check(average)
        self.optimizer.load_state_dict(state.get("optimizer", {}))
        self.backbone.net.load_state_dict(state["backbone"])
        self.heads.load_state_dict(state["heads"])
        self.learning_rate = state["learning_rate"]
        if self.loss_scale is not None:
            self.loss_scale.load_state_dict(state["loss_scale"])
        if self.average is not None:
            self.average.load_state_dict(average)

    def describe(self, batch: int, machine: Machine | None = None) -> dict[str, Any]:
        """The step plan's figures for a batch, as plain data; `mlaan.plan.report.as_text` puts it in lines.

        Args:
            machine: whose times to predict, if any.
        """
        return report(self.planned(batch, machine))

    def planned(self, batch: int, machine: Machine | None = None) -> Planned:
        """All that predictions are made of, for a batch, or a part of one, that runs at once."""
        return Planned(
            self.site,
            self.supervision,
            self.plan,
            batch,
            self.dtype,
            self.settings,
            machine,
            self.state_bytes,
            "tf32" if self.precision == "tf32" else None,
            self.accumulate,
            0 if self.average is None else average_bytes(self.backbone.net),
        )

    def _lanes_for(self, shape: tuple[int, ...]) -> LanePlan:
        """Where each step of the plan runs, by the times that it would take on a GPU like this one."""
        machine = machine_like(self.device)
        precision = "tf32" if self.precision == "tf32" else None
        return place(self.site, self.supervision, self.plan, shape, self.dtype, self.settings, machine, precision)

    def signature(self) -> str:
        """Model, cut and method in words: what a state must agree on."""
        settings = ", ".join(f"{f.name}={getattr(self.method, f.name)!r}" for f in fields(cast(Any, self.method)))
        net = f"{self.backbone.name} with {self.backbone.num_classes} classes cut at {list(self.partition.starts)}"
        return f"{net}, {self.method.name}({settings})"

    def _exact(self, part: str, module: nn.Module) -> dict[str, Tensor]:
        """A part's state, of bfloat16 weights their float32 masters."""
        masters = {name: self.optimizer.master_of(weight).detach() for weight, name in self._names().items()}
        return {key: masters.get(f"{part}.{key}", value) for key, value in module.state_dict().items()}  # type: ignore[misc]

    def _train_mode(self) -> None:
        self.backbone.net.train()
        nn.ModuleList([self.heads, *borrowed(self.heads)]).train()

    def _names(self) -> dict[nn.Parameter, str]:
        parts = (("backbone", self.backbone.net), ("heads", self.heads))
        return {p: f"{part}.{name}" for part, module in parts for name, p in module.named_parameters()}

    def _moves(self, index: int, module: nn.Module) -> dict[nn.Module, int]:
        if not self.supervision.statistics:
            return {}
        moves = dict.fromkeys(module.children(), self.supervision.statistics[index])
        return moves | {self.backbone.stem: self.supervision.stem_statistics} if index == 0 else moves
