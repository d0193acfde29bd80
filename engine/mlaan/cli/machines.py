"""Whose memory and times a plan is about, and where this machine's own figures lie."""

import difflib
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from mlaan.build import choose_device
from mlaan.config import Config
from mlaan.errors import UserError
from mlaan.plan.machine import MACHINES, Machine
from mlaan.plan.placing import machine_like


class Chosen(NamedTuple):
    """A machine, in words why it is that one, and whether it is this one."""

    machine: Machine
    why: str
    is_here: bool


def profile_path() -> Path:
    """Where `mlaan doctor --measure` keeps this machine's figures."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mlaan" / "machine.json"


def choose_machine(name: str, config: Config) -> Chosen:
    """The machine that --machine names; without a name this one, for the device that train.device means.

    Raises:
        UserError: neither a machine that is known nor a file of its figures.
    """
    if name in MACHINES:
        return Chosen(MACHINES[name], "figures from its data sheet", False)
    if name:
        return Chosen(_read(Path(name), name), f"figures of {name}", False)
    try:
        device = choose_device(config.train.device)
    except UserError:
        why = f"train.device = {config.train.device!r} is not here, and --machine chooses another"
        return Chosen(MACHINES["h100"], why, False)
    path = profile_path()
    if path.exists():
        own = _read(path, str(path))
        if own.kind == device.type and (device.type == "cpu" or own.name == torch.cuda.get_device_name(device)):
            return Chosen(own, f"measured here: {path}", True)
    like = machine_like(device)
    why = f"figures of {like.name}: `mlaan doctor --measure` takes this machine's own"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return Chosen(replace(like, name=torch.cuda.get_device_name(device), memory=total), why, True)
    return Chosen(replace(like, name="this CPU", memory=_main_memory(like.memory)), why, True)


def _read(path: Path, given: str) -> Machine:
    try:
        return Machine.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(MACHINES)
        close = difflib.get_close_matches(given, MACHINES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"--machine {given}: neither one of {known} nor a file that can be read ({error.strerror}){hint}"
        ) from None
    except ValueError as error:
        cause = error.__cause__ or error
        why = f"it lacks {cause}" if isinstance(cause, KeyError) else str(cause)
        raise UserError(f"{given} holds no machine's figures ({why}): `mlaan doctor --measure` writes such") from None


def _main_memory(unknown: int) -> int:
    """Bytes of main memory; `unknown` where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return unknown
