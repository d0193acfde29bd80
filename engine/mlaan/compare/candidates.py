"""Who is put beside end-to-end training: methods, numbers of modules and schedules, out of a config."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from mlaan.build import outline
from mlaan.compare.contenders import segment_counts
from mlaan.config import Config, MethodConfig
from mlaan.config.values import show
from mlaan.errors import UserError
from mlaan.execute.kernels import Kernels
from mlaan.learning import MLAAN

PLAIN, CHECKPOINTED = "end-to-end", "checkpointed"


@dataclass(frozen=True)
class Candidate:
    """One way to train the config's network.

    Attributes:
        family: "end-to-end", "checkpointed", or a method with its settings.
        config: what a local learner is built from: the user's, with the candidate's modules and schedule; for the
            two above the user's own.
        fused: end-to-end or checkpointed with our fused blocks.
    """

    family: str
    config: Config
    fused: bool = False

    @property
    def is_local(self) -> bool:
        return self.family not in (PLAIN, CHECKPOINTED)

    @property
    def schedule(self) -> str:
        """The schedule in words: "lean", "full" or "window N", and the recomputation where there is any."""
        memory = self.config.memory
        words = f"window {memory.window}" if memory.schedule == "windowed" else memory.schedule
        return words if memory.recompute == "none" else f"{words}, {memory.recompute}"

    @property
    def label(self) -> str:
        """How tables and messages call it; no two alike."""
        if self.is_local:
            return f"{self.family} ({self.config.partition.modules} modules, {self.schedule})"
        return f"{self.family}, fused blocks" if self.fused else self.family


@dataclass(frozen=True)
class Refused:
    """What could not be made or measured, and why."""

    label: str
    reason: str


def line_up(
    config: Config, kernels: Kernels, blocks: int, methods: Sequence[MethodConfig], modules: Sequence[int]
) -> list[Candidate | Refused]:
    """End-to-end, checkpointed, both fused where Triton kernels run, and every method at each number of modules.

    A method runs with the lean schedule, with the full one where that keeps more modules alive, and at the largest
    number of modules that fits with a window between.

    Args:
        kernels: what the config's come to on the device.
        blocks: of the network.
    """
    found: list[Candidate | Refused] = [Candidate(PLAIN, config)]
    if segment_counts(blocks):
        found.append(Candidate(CHECKPOINTED, config))
    else:
        found.append(Refused(CHECKPOINTED, "the network has a single block, and so no segments"))
    if kernels == "triton":
        found += [Candidate(family, config, fused=True) for family in (PLAIN, CHECKPOINTED)]
    for method in methods:
        found += _of_method(replace(config, method=method), kernels, modules)
    return found


def _of_method(config: Config, kernels: Kernels, modules: Sequence[int]) -> Iterator[Candidate | Refused]:
    family = name_of(config.method)
    windows = {}
    for count in modules:
        try:
            windows[count] = outline(with_modules(config, count, "lean")).plan.window
        except UserError as error:
            yield Refused(f"{family} ({count} modules)", str(error))
    for count, alive in windows.items():
        yield Candidate(family, with_modules(config, count, "lean"))
        middle = (alive + count) // 2
        if count == max(windows) and alive < middle < count:
            yield Candidate(family, with_modules(config, count, "windowed", middle))
        if alive < count:
            yield Candidate(family, with_modules(config, count, "full"))
    if windows and kernels == "triton" and config.memory.recompute == "none":
        leanest = with_modules(config, max(windows), "lean")
        yield Candidate(family, replace(leanest, memory=replace(leanest.memory, recompute="fused")))


def choose_methods(names: Sequence[str], config: Config) -> list[MethodConfig]:
    """The methods by name: the config's with its settings, others with their defaults; MLAAN as `light`, too.

    Raises:
        UserError: an unknown name, or end_to_end, which everything is put beside anyway.
    """
    found: list[MethodConfig] = []
    for name in names:
        if name == "end_to_end":
            raise UserError("--methods end_to_end is measured in any case: leave it out")
        if name not in MethodConfig.choices:
            known = ", ".join(sorted(set(MethodConfig.choices) - {"end_to_end"}))
            raise UserError(f"--methods {name} must be of {known}")
        method = config.method if config.method.name == name else MethodConfig.make(name)
        found.append(method)
        if isinstance(method, MLAAN) and method.preset != "light":
            found.append(MLAAN(preset="light", reach=method.reach, base=method.base))
    return list(dict.fromkeys(found))


def name_of(method: MethodConfig) -> str:
    """The method's name, MLAAN's preset, and every other setting that is not the default's."""
    default = asdict(cast(Any, type(method)()))
    chosen = asdict(cast(Any, method))
    preset = [chosen["preset"]] if "preset" in chosen else []
    changed = [f"{key}={show(value)}" for key, value in chosen.items() if key != "preset" and value != default[key]]
    return " ".join([method.name, *preset, *changed])


def with_modules(
    config: Config, modules: int, schedule: Literal["lean", "windowed", "full"], window: int = 0
) -> Config:
    """The settings with another number of modules and another schedule."""
    return replace(
        config,
        partition=replace(config.partition, modules=modules),
        memory=replace(config.memory, schedule=schedule, window=window),
    )
