"""What happens when a run's numbers are not finite any more.

Looking at every step would make the host wait for the device. So a run looks now and then, and before every
checkpoint: checkpoints are finite. When something is not, the run goes back to the newest checkpoint and takes the same
steps again, this time looking at each. The first bad one is kept in RUN/incidents for `mlaan replay`, with all that it
depends on; then `run.on_nan` decides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlaan import checkpoint, signed
from mlaan.config import RunConfig
from mlaan.engine import Engine, StepResult
from mlaan.errors import UserError
from mlaan.observe.finite import NotFinite, first_bad_loss, first_bad_weight
from mlaan.observe.state import TrainState
from mlaan.run_folder import RunFolder

ROLLBACKS = 3
"""Most of one epoch that `run.on_nan = "rollback"` takes before it stops all the same."""

_HELP = (
    "lower optim.learning_rate, or set optim.warmup_epochs or optim.clip, in a new run (`mlaan export` writes the "
    "weights that its --model.weights takes)"
)


@dataclass(frozen=True)
class Incident:
    """A step that left something not finite, with all that is needed to run it again; tensors on the CPU.

    Attributes:
        config: the run's settings, as TOML.
        engine: the engine's state before the step.
        random: `checkpoint.random_state` before the step.
        images, labels: the batch, as the engine got it.
        normalisation: mean and standard deviation of the data's channels.
        epoch, step: the epoch, from 1, and the number of the step in the run, from 1.
        found: what was not finite, in words.
    """

    config: str
    engine: dict[str, Any]
    random: dict[str, Tensor]
    images: Tensor
    labels: Tensor
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    epoch: int
    step: int
    found: str

    def save(self, path: Path) -> None:
        """Writes it whole or not at all; raises UserError where that cannot be done."""
        signed.write({"kind": "incident"} | {f.name: getattr(self, f.name) for f in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> "Incident":
        """Reads one onto the CPU; raises UserError where it is none."""
        if not path.exists():
            raise UserError(f"no file {path}: give one of RUN/incidents")
        content = signed.read(path)
        if content.get("kind") != "incident":
            raise UserError(f"{path} is no incident: give a file of a run's folder incidents")
        mean, std = content["normalisation"]
        return cls(
            **{f.name: content[f.name] for f in fields(cls) if f.name != "normalisation"},
            normalisation=(tuple(mean), tuple(std)),
        )


class Rescue:
    """Takes a run's steps, and finds the bad one when there is one.

    Args:
        folder: the run's.
        config: its settings, as TOML.
        policy: the section `run`.
        normalisation: as in `Incident`.
        engine, state: the run's.
        go_back: puts the run back to its newest checkpoint.
        say: is told what a person should know.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: str,
        policy: RunConfig,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]],
        engine: Engine,
        state: TrainState,
        go_back: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._config, self._policy, self._normalisation = folder, config, policy, normalisation
        self._engine, self._state, self._go_back, self._say = engine, state, go_back, say
        self._until = -1
        """Steps up to this one are looked at, each by itself."""
        self._has_found = False

    def step(self, images: Tensor, labels: Tensor) -> StepResult | None:
        """`engine.step`; None for a step that was taken back, whose batch is left out.

        Raises:
            UserError: what the step leaves is not finite, and the run is to stop.
        """
        if self._state.step >= self._until:
            return self._engine.step(images, labels)
        engine, state = self._engine, self._state
        before = _on_cpu(engine.state_dict()), checkpoint.random_state(engine.device)
        result = engine.step(images, labels)
        found = first_bad_loss(engine, result.losses) or first_bad_weight(engine)
        if not found:
            if state.step + 1 == self._until and not self._has_found:
                self._say(f"every step up to {self._until} was finite this time, so none is kept for `mlaan replay`")
            return result
        incident = Incident(
            self._config,
            *before,
            images.cpu(),
            labels.cpu(),
            self._normalisation,
            state.epoch + 1,
            state.step + 1,
            found,
        )
        self._has_found = True
        again = f"-{state.rollbacks}" if state.rollbacks else ""  # the next batch may be bad, too
        path = self._folder.incidents / f"epoch-{incident.epoch}-step-{incident.step}{again}.pt"
        try:
            path.parent.mkdir(exist_ok=True)
            incident.save(path)
            look = f"`mlaan replay {path}` tells where"
        except (OSError, UserError) as error:  # a full disk is no reason to stop
            look = f"the step could not be kept ({error})"
        where = f"{found} after step {incident.step}, in epoch {incident.epoch}: {look}"
        if self._policy.on_nan == "stop":
            raise UserError(f"{where}; {_HELP}, or go on without such batches by --resume with --run.on_nan rollback")
        if state.rollbacks == ROLLBACKS:
            raise UserError(f"{where}; it is the {ROLLBACKS + 1}th of this epoch, so the run stops: {_HELP}")
        engine.load_state_dict(before[0])
        checkpoint.set_random_state(before[1], engine.device)
        state.rollbacks += 1
        self._say(f"{where}; that step is taken back and its batch left out (run.on_nan = 'rollback')")
        return None

    def look_closely(self, error: NotFinite) -> None:
        """Goes back to the newest checkpoint; from there every step is looked at until past the one of `error`.

        Raises:
            NotFinite: that was done already, and no step was found to be bad by itself.
        """
        if error.step <= self._until:
            raise NotFinite(f"{error} (no single step left anything that was not finite)", error.step) from None
        self._go_back()
        self._until, self._has_found = error.step, False
        self._say(f"{error}; going back to step {self._state.step} to look for the step that did it")


def _on_cpu(value: Any) -> Any:
    """A copy of nested values, tensors on the CPU."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="cpu").copy_(value)
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value
