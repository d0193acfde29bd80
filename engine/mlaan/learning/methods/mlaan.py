"""MLAAN (AAAI 2025): an independent and a cascaded loss per module (MLM), the latter behind a leap network (LAM)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from mlaan.config import MethodConfig, setting
from mlaan.errors import UserError
from mlaan.learning.heads import PoolLinear
from mlaan.learning.leap import LeapNetwork, copy_block, initialise, leap_sources
from mlaan.learning.partition import Partition
from mlaan.learning.supervision import LocalLoss, Supervision, Twin
from mlaan.models import Backbone


@dataclass(frozen=True)
class MLAAN(MethodConfig, name="mlaan"):
    """MLAAN: an independent and a cascaded loss on every module, the cascaded one behind a leap network.

    For every module i:  w_x CE(c_i(f_i(sg h_{i-1})), y)  +  w_y CE(d_i(A_i(f_i(... f_{i-r+1}(sg h_{i-r})))), y).

    The last module has CE on the backbone's own classifier instead. `authors` follows their code step for step:
    no loss on the first r-1 modules, running statistics moved once per path that passes, and twins of which most
    never move; it differs between nets of three stages (their CIFAR code) and of four (their ImageNet code).
    """

    preset: Literal["paper", "light", "authors"] = setting(
        "paper", "paper: the method as described; light: paper without leap networks; authors: as their code runs"
    )
    mlm: bool = setting(True, "independent and cascaded losses; false: one loss of reach 1 per module")
    lam: bool = setting(True, "leap networks before the cascaded loss; false: pool + linear, as preset light")
    reach: int = setting(2, "modules that a cascaded loss reaches back through, its own included")
    independent_weight: float = setting(0.001, "w_x, weight of the independent losses")
    cascaded_weight: float = setting(0.999, "w_y, weight of the cascaded losses")
    twins: Literal["first", "all", "none"] = setting("first", "leap blocks that are joined with an EMA twin")
    ema: float = setting(0.995, "share of its old value that a twin keeps in a step")

    def __post_init__(self) -> None:
        if self.reach < 1:
            raise UserError(f"method.reach = {self.reach} must be at least 1: 1 is the module itself, 2 is the paper's")
        if not 0 <= self.ema <= 1:
            raise UserError(f"method.ema = {self.ema} must be from 0 to 1")
        if self.preset == "authors" and not (self.mlm and self.lam):
            raise UserError("method.preset = 'authors' has both mlm and lam: use preset = 'paper' to switch one off")
        if min(self.independent_weight, self.cascaded_weight) < 0:
            raise UserError("method.independent_weight and method.cascaded_weight must not be negative")

    def supervise(self, backbone: Backbone, partition: Partition, shapes: Sequence[Sequence[int]]) -> Supervision:
        """The losses and twins on a partition of a backbone whose blocks' outputs have `shapes` (C, H, W)."""
        k, authors = len(partition), self.preset == "authors"
        if authors and k < self.reach:
            raise UserError(
                f"partition.modules = {k} is below method.reach = {self.reach}: preset 'authors' needs at least as many"
            )
        imagenet = authors and backbone.blocks[-1].stage >= 4
        leaps = _LeapBuilder(self, backbone, partition, shapes, fresh=imagenet)
        outputs = partition.outputs(shapes)
        losses: list[LocalLoss] = []
        for i in range(self.reach - 1 if authors else 0, k - 1):
            if self.mlm and self.independent_weight:
                head = PoolLinear(outputs[i][0], backbone.num_classes)
                losses.append(LocalLoss(i, head, 1, self.independent_weight, "independent"))
            moves = self._moves(i, k, imagenet)
            cascaded = leaps.build(i, moves) if self.lam and self.preset != "light" else None
            head = cascaded or PoolLinear(outputs[i][0], backbone.num_classes)
            if self.mlm:
                losses.append(LocalLoss(i, head, min(self.reach, i + 1), self.cascaded_weight, "cascaded"))
            else:
                losses.append(LocalLoss(i, head, 1, 1.0, "local"))
        reach = min(self.reach, k) if self.mlm else 1
        if imagenet:
            losses.append(LocalLoss(k - 1, backbone.classifier, 1, self.independent_weight, "independent"))
            losses.append(LocalLoss(k - 1, backbone.classifier, reach, self.cascaded_weight, "classifier"))
        else:
            losses.append(LocalLoss(k - 1, backbone.classifier, reach, 1.0, "classifier"))
        # their stem runs once a step: both paths start from its output
        statistics = _passes(k, self.reach) if authors else ()
        return Supervision(tuple(losses), tuple(leaps.twins.values()), statistics, stem_statistics=1)

    def _moves(self, module: int, modules: int, imagenet: bool) -> int:
        """How often a step moves the twins of a module's leap network."""
        if self.preset != "authors":
            return 1
        last = module == modules - 2
        return (2 if last else 1) if imagenet else (1 if last else 0)


def _passes(modules: int, reach: int) -> tuple[int, ...]:
    """Forward passes of each module in the authors' code: the isolated path, and every cascade that crosses it."""
    ends = range(reach - 1, modules)
    return tuple(1 + sum(end - reach < i <= end for end in ends) for i in range(modules))


class _LeapBuilder:
    """Builds leap networks; twins of one source, start and pace are one twin."""

    def __init__(
        self,
        method: MLAAN,
        backbone: Backbone,
        partition: Partition,
        shapes: Sequence[Sequence[int]],
        *,
        fresh: bool,
    ) -> None:
        self.method, self.backbone, self.partition, self.fresh = method, backbone, partition, fresh
        self.channels = {id(block.module): shape[0] for block, shape in zip(backbone.blocks, shapes, strict=True)}
        self.blocks: dict[tuple[int, ...], nn.Module] = {}
        self.twins: dict[tuple[int, ...], Twin] = {}

    def build(self, module: int, moves: int) -> nn.Module | None:
        """The leap network of a local module, or None where no later block is left to copy."""
        last = self.backbone.blocks[self.partition.spans[module][1] - 1]
        sources = [b.module for b in leap_sources(self.backbone, len(self.partition), last)]
        if not sources:
            return None
        leaps = [self._start(copy_block(source, trainable=True)) for source in sources]
        joined = {"first": 1, "all": len(sources), "none": 0}[self.method.twins]
        twins = [self._twin(source, moves, module, t) if t < joined else None for t, source in enumerate(sources)]
        head = PoolLinear(self.channels[id(sources[-1])], self.backbone.num_classes)
        return LeapNetwork(leaps, twins, head)

    def _twin(self, source: nn.Module, moves: int, module: int, position: int) -> nn.Module:
        key = (id(source), moves, module, position) if self.fresh else (id(source), moves)
        if key not in self.blocks:
            self.blocks[key] = self._start(copy_block(source, trainable=False))
            if moves:
                self.twins[key] = Twin(self.blocks[key], source, self.method.ema**moves)
        return self.blocks[key]

    def _start(self, block: nn.Module) -> nn.Module:
        return initialise(block) if self.fresh else block
