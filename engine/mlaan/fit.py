"""Whether a run's step fits into memory: asked before anything is loaded, and told when it did not."""

import math
import os
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from mlaan.build import bench_for, choice_of, choose_device, outline, with_kernels
from mlaan.config import Config, bytes_of, gib
from mlaan.engine import Engine
from mlaan.errors import StepMemoryError, UserError
from mlaan.free_memory import free_memory
from mlaan.plan.change import nearest_change, words
from mlaan.plan.machine import Machine
from mlaan.plan.placing import machine_like
from mlaan.plan.predict import predict

CLEAR = 1.05
"""Share of the memory beyond which a predicted peak is refused: predictions are a few hundredths off."""
_ROOM = 40
"""Times the blocks' outputs that a step may take by a first look: no network that is known takes half as much."""


class Memory(NamedTuple):
    """What a step may take: bytes, and that in words."""

    size: int
    words: str


class Fit(NamedTuple):
    """A run that was looked at: the memory before it began, if known; what could not be found out, to be said."""

    memory: Memory | None
    note: str = ""


def available(config: Config, device: torch.device) -> Memory | None:
    """memory.limit, or what the device has left; None where that is not known."""
    if config.memory.limit:
        limit = bytes_of(config.memory.limit, "memory.limit")
        return Memory(limit, f"{gib(limit)} allowed by memory.limit = {config.memory.limit!r}")
    size = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_on_cpu()
    return None if size is None else Memory(size, f"{gib(size)} free on {device}")


def _free_on_cpu() -> int | None:
    """Bytes that Linux says this process can have; all memory on other systems."""
    if math.isfinite(free := free_memory()):
        return int(free)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def hold_to_limit(config: Config, device: torch.device) -> None:
    """Lets PyTorch take no more than memory.limit of a GPU."""
    if config.memory.limit and device.type == "cuda":
        share = bytes_of(config.memory.limit, "memory.limit") / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)


def require_fit(config: Config, *, resumed: Path | None = None) -> Fit:
    """Refuses a run whose predicted peak is clearly beyond the memory; loads no data.

    Args:
        resumed: the folder of a run that goes on, whose settings cannot change.

    Raises:
        UserError: it does not fit; it tells both figures and the nearest settings that do.
    """
    device = choose_device(config.train.device)
    memory = available(config, device)
    if memory is None:
        return Fit(None, f"whether the run fits is not known: the system does not tell how much memory {device} has")
    batch = choice_of(config).batch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself says what it loses
            engine = outline(with_kernels(config, device.type))
            if _is_small(engine, batch, memory.size):
                return Fit(memory)
            peak = _peak(engine, batch, machine_like(device))
    except (UserError, RuntimeError, NotImplementedError, TypeError) as error:
        # a wrong setting is refused by the run itself, in the same words
        why = f"{config.model.name} does not run on the meta device ({_line(error)})"
        return Fit(memory, f"whether the run fits is not known: {why}")
    if peak <= CLEAR * memory.size:
        return Fit(memory)
    fix = _advice(config, machine_like(device), [memory.size], resumed)
    more = (
        f"`mlaan plan --memory {config.memory.limit or _typed(memory.size)}` with these settings looks for the fastest"
    )
    raise UserError(f"the step does not fit: it would take {gib(peak)} at the peak, with {memory.words}; {fix}; {more}")


def explain_failure(
    error: StepMemoryError, config: Config, engine: Engine, memory: Memory | None, folder: Path, *, resumed: bool
) -> UserError:
    """What to say about a run whose memory did not do: the task, the figures, and what would fit.

    Args:
        memory: what there was before it began.
        folder: the run's.
        resumed: whether it went on, so that its settings cannot change.
    """
    blocks, (a, b) = engine.backbone.blocks, engine.partition.spans[error.module]
    where = f"module {error.module}, blocks {blocks[a].label}-{blocks[b - 1].label}"
    said = f"the memory of {engine.device} did not do in {error.task} ({where})"
    goes_on = f"with more memory `mlaan train --resume {shlex.quote(str(folder))}` goes on from the last checkpoint"
    machine = machine_like(engine.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peak = _peak(engine, choice_of(config).batch, machine)
            # the prediction was too low, or others took memory: a tenth less if that can be had
            budgets = [min(size, memory.size) if memory else size for size in (peak * 9 // 10, peak - 1)]
            fix = _advice(config, machine, budgets, folder if resumed else None)
    except (UserError, RuntimeError, NotImplementedError, TypeError) as failed:
        fix = f"set a smaller data.batch, or memory.recompute = 'once' (nothing can be predicted: {_line(failed)})"
        return UserError(f"{said}; {fix}; {goes_on}")
    there = f", with {memory.words} at the start" if memory else ""
    return UserError(f"{said}: the step was predicted to take {gib(peak)}{there}; {fix}; {goes_on}")


def _peak(engine: Engine, batch: int, machine: Machine) -> int:
    """Predicted bytes at the peak of a step, the libraries' workspace included."""
    planned = engine.planned(batch, machine)
    fused = planned.settings is not None
    costs = planned.costs(planned.site, planned.supervision, planned.parts(fused=fused), fused=fused)
    return predict(planned.plan, costs).peak_bytes + machine.workspace


def _is_small(engine: Engine, batch: int, size: int) -> bool:
    """Whether a step fits many times over, so that it need not be predicted."""
    values = sum(map(_count, [engine.input_shape, *engine.site.shapes]))
    nets = (engine.backbone.net, engine.heads)
    weights = sum(p.numel() * p.element_size() for net in nets for p in net.parameters())
    return _ROOM * values * batch * 4 + 5 * weights < size / 2


def _count(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _advice(config: Config, machine: Machine, budgets: Sequence[int], resumed: Path | None) -> str:
    """The nearest settings that fit into the first budget that any fit into, as words to type."""
    config = with_kernels(config, machine.kind)
    before, bench = choice_of(config), bench_for(config, machine)
    found = (nearest_change(bench, before, budget) for budget in budgets)
    one = next((one for one in found if one is not None), None)
    if one is None:
        return "no other schedule, cut or batch that was looked at fits: choose a smaller network or smaller images"
    change = words(before, one.choice)
    if resumed is None:
        return f"add {change}, for {gib(one.peak_bytes)}"
    again = f"`mlaan train --config {shlex.quote(str(resumed / 'config.toml'))} {change}`"
    return f"a run that goes on keeps its settings, so start a new one, for {gib(one.peak_bytes)}: {again}"


def _typed(size: int) -> str:
    """Bytes as a word of a command line, rounded down."""
    return f"{size // 2**20}MiB" if size >= 100 * 2**20 else f"{size // 2**10}KiB"


def _line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error) or type(error).__name__).splitlines()[0]
