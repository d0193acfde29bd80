"""MLAAN (AAAI 2025): an independent and a cascaded loss per module (MLM), the latter behind a leap network (LAM)."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from mlaan.config import MethodConfig, setting
from mlaan.config.values import show
from mlaan.errors import UserError
from mlaan.learning.base import Auxiliary, Base, BaseName, Light, base_named
from mlaan.learning.leap import LeapNetwork, copy_block, initialise, leap_sources, live_block, short_leap
from mlaan.learning.site import Site
from mlaan.learning.supervision import LocalLoss, Supervision, Twin
from mlaan.models import Block


@dataclass(frozen=True)
class MLAAN(MethodConfig, name="mlaan"):
    """MLAAN: an independent and a cascaded loss on every module, the cascaded one behind a leap network.

    For every module i:  w_x CE(c_i(f_i(sg h_{i-1})), y)  +  w_y CE(d_i(A_i(f_i(... f_{i-r+1}(sg h_{i-r})))), y).

    The last module has CE on the backbone's own classifier instead. With another `base` its auxiliary classifier and
    loss stand for c_i, d_i and CE. `authors` follows their code step for step:
    no loss on the first r-1 modules, running statistics moved once per path that passes, and twins of which most
    never move; it differs between nets of three stages (their CIFAR code) and of four (their ImageNet code).

    Ours, not published: leap networks that a stage shares, that are the live later blocks, or that read the module's
    output averaged 2 x 2, or that are short; `fast` is stage, short and pooled, without twins.
    """

    preset: Literal["paper", "light", "authors", "fast"] = setting(
        "paper",
        "paper: the method as described; light: paper without leap networks; authors: as their code runs, with no loss "
        "on the first reach - 1 modules; "
        "fast (ours): leap networks shared by a stage, short, pooled, without twins",
    )
    base: BaseName = setting("light", "auxiliary classifier and loss: light (pool + linear), or those of a method")
    mlm: bool = setting(True, "independent and cascaded losses; false: one loss of reach 1 per module")
    lam: bool = setting(True, "leap networks before the cascaded loss; false: the base alone, as preset light")
    reach: int = setting(
        2, "modules that a cascaded loss reaches back through, its own included; more than there are: all"
    )
    independent_weight: float = setting(0.001, "w_x, weight of the independent losses")
    cascaded_weight: float = setting(0.999, "w_y, weight of the cascaded losses")
    leap: Literal["auto", "own", "stage", "live"] = setting(
        "auto",
        "own: a leap network for every module; stage (ours): one for the modules of a stage; live (ours): the later "
        "blocks themselves, frozen; auto: by the preset",
    )
    pooled: bool | Literal["auto"] = setting(
        "auto", "average 2 x 2 before the leap network (ours); auto: by the preset"
    )
    depth: Literal["auto", "full", "short"] = setting(
        "auto",
        "blocks of a leap network: full: the published tables, or their rule; short (ours): the first of each later "
        "stage and the very last; auto: by the preset",
    )
    twins: Literal["auto", "first", "all", "none"] = setting(
        "auto", "leap blocks that are joined with an EMA twin; auto: by the preset"
    )
    ema: float = setting(0.995, "share of its old value that a twin keeps in a step")

    def __post_init__(self) -> None:
        if self.reach < 1:
            raise UserError(f"method.reach = {self.reach} must be at least 1: 1 is the module itself, 2 is the paper's")
        if not 0 <= self.ema <= 1:
            raise UserError(f"method.ema = {self.ema} must be from 0 to 1")
        if min(self.independent_weight, self.cascaded_weight) < 0:
            raise UserError("method.independent_weight and method.cascaded_weight must not be negative")
        theirs = {"base": ["light"], "mlm": [True], "lam": [True], "leap": ["auto", "own"], "pooled": ["auto", False]}
        theirs |= {"depth": ["auto", "full"], "twins": ["auto", "first"]}
        self._require_a_use_of_settings()
        shared = self.leap == "stage" or (self.leap == "auto" and self.preset == "fast")
        if self.base == "infopro" and shared:
            raise UserError(
                "method.base = 'infopro' weighs the losses of every module otherwise, so a stage cannot share a leap "
                "network with it: set method.leap = 'own', or another base"
            )
        if self.preset == "authors" and any(getattr(self, name) not in known for name, known in theirs.items()):
            raise UserError(
                "method.preset = 'authors' is their code with mlm, lam and leap networks of its own: "
                "use preset = 'paper' to change these"
            )

    def _require_a_use_of_settings(self) -> None:
        """UserError for a setting that would change nothing."""
        without = "preset = 'light'" if self.preset == "light" else "lam = false" if not self.lam else ""
        for name in ("leap", "pooled", "depth", "twins"):
            if without and getattr(self, name) != "auto":
                raise UserError(
                    f"method.{name} = {show(getattr(self, name))} shapes leap networks, but method.{without} has none: "
                    "leave one of the two out"
                )
        if not self.mlm and self.reach > 2:
            raise UserError(
                f"method.reach = {self.reach} is that of the cascaded losses, but method.mlm = false has none: "
                "leave one of the two out"
            )

    def supervise(self, site: Site) -> Supervision:
        """The losses and twins."""
        k, authors = site.modules, self.preset == "authors"
        if authors and k < self.reach:
            raise UserError(
                f"partition.modules = {k} is below method.reach = {self.reach}: preset 'authors' needs at least as many"
            )
        imagenet = authors and site.backbone.blocks[-1].stage >= 4
        base = base_named(self.base)
        leaps = _LeapBuilder(self, site, fresh=imagenet)
        losses: list[LocalLoss] = []
        for i, shape in enumerate(site.outputs[:-1]):
            if authors and i < self.reach - 1:
                continue
            if self.mlm and self.independent_weight:
                head, criterion, predicts = base.auxiliary(site, i, shape)
                losses.append(LocalLoss(i, head, 1, self.independent_weight, "independent", criterion, predicts))
            leap = leaps.build(i, self._moves(i, k, imagenet)) if self.lam and self.preset != "light" else None
            head, criterion, predicts = leap or base.auxiliary(site, i, shape)
            reach, weight, kind = (
                (min(self.reach, i + 1), self.cascaded_weight, "cascaded") if self.mlm else (1, 1.0, "local")
            )
            losses.append(LocalLoss(i, head, reach, weight, kind, criterion, predicts))
        classifier, reach = site.backbone.classifier, min(self.reach, k) if self.mlm else 1
        if imagenet:
            losses.append(LocalLoss(k - 1, classifier, 1, self.independent_weight, "independent"))
            losses.append(LocalLoss(k - 1, classifier, reach, self.cascaded_weight, "classifier"))
        else:
            losses.append(LocalLoss(k - 1, classifier, reach, 1.0, "classifier"))
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
    """Builds leap networks; twins of one source, start and pace are one twin, as are leap networks of one stage."""

    def __init__(self, method: MLAAN, site: Site, *, fresh: bool) -> None:
        self.method, self.site, self.fresh = method, site, fresh
        fast = method.preset == "fast"
        self.kind = method.leap if method.leap != "auto" else "stage" if fast else "own"
        self.pooled = method.pooled if method.pooled != "auto" else fast
        self.short = (method.depth if method.depth != "auto" else "short" if fast else "full") == "short"
        self.joined = method.twins if method.twins != "auto" else "none" if fast else "first"
        # AugLocal's auxiliary network is made of later blocks, as a leap network is: behind one its classifier is left
        self.base: Base = Light() if method.base == "auglocal" else base_named(method.base)
        self.blocks: dict[tuple[int, ...], nn.Module] = {}
        self.twins: dict[tuple[int, ...], Twin] = {}
        self.shared: dict[tuple[int, ...], Auxiliary | None] = {}

    def build(self, module: int, moves: int) -> Auxiliary | None:
        """The leap network of a local module with its loss, or None where no later block is left to copy."""
        last = self.site.backbone.blocks[self.site.partition.spans[module][1] - 1]
        if self.kind != "stage":
            return self._build(module, moves, last)
        key = (last.stage, *self.site.outputs[module])
        if key not in self.shared:  # the first module of a stage has the longest leap, which then serves them all
            self.shared[key] = self._build(module, moves, last)
        return self.shared[key]

    def _build(self, module: int, moves: int, last: Block) -> Auxiliary | None:
        sources = [block.module for block in self._sources(last)]
        if not sources:
            return None
        live, shape = self.kind == "live", self.site.outputs[module]
        leaps = [live_block(s) if live else self._start(copy_block(s, trainable=True)) for s in sources]
        joined = {"first": 1, "all": len(sources), "none": 0}[self.joined]
        twins = [self._twin(source, moves, module, t) if t < joined else None for t, source in enumerate(sources)]
        leap = LeapNetwork(leaps, twins, nn.Identity(), pooled=self.pooled, live=live)
        try:
            features = leap.features_shape(shape)
        except RuntimeError as error:
            raise UserError(
                f"the leap network of module {module} does not fit its output of shape {tuple(shape)}: choose other "
                f"cuts, or method.lam = false ({error})"
            ) from error
        leap.head, criterion, predicts = self.base.auxiliary(self.site, module, features)
        return Auxiliary(leap, criterion, predicts)

    def _sources(self, last: Block) -> list[Block]:
        backbone = self.site.backbone
        return short_leap(backbone, last) if self.short else leap_sources(backbone, self.site.modules, last)

    def _twin(self, source: nn.Module, moves: int, module: int, position: int) -> nn.Module:
        key = (id(source), moves, module, position) if self.fresh else (id(source), moves)
        if key not in self.blocks:
            self.blocks[key] = self._start(copy_block(source, trainable=False))
            if moves:
                self.twins[key] = Twin(self.blocks[key], source, self.method.ema**moves)
        return self.blocks[key]

    def _start(self, block: nn.Module) -> nn.Module:
        return initialise(block) if self.fresh else block
