"""Runs that are killed at random moments and go on, each in a child forked from one process that has everything loaded.

    python killing.py '{"flags": [...], "folder": "...", "moments": 20, "seed": 0}'

Prints what happened as JSON. It is a program of its own because a process must not be forked once it has threads.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import mlaan.cli.train  # noqa: F401 - before the forks, which then need not load it
from mlaan.cli import main
from trainer.tiny import final_state, same


def begin(words: list[str], forgetful: bool = False) -> int:
    """The process number of a child that runs `mlaan train`; a forgetful one ignores the loader's state."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)  # so that its workers can be killed with it
    log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    status = 70
    try:
        with mock.patch("mlaan.report.draw"):
            if forgetful:
                with mock.patch("mlaan.data.loader.Loader.load_state_dict"):
                    status = main(["train", *words])
            else:
                status = main(["train", *words])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(child: int) -> None:
    """Waits for a child that must succeed."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise SystemExit(f"a run ended with exit status {status}")


def kill(child: int, seconds: float) -> bool:
    """Kills a child and all its workers after some seconds; False if it was done by then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.waitstatus_to_exitcode(status):
                raise SystemExit(f"a run ended with exit status {os.waitstatus_to_exitcode(status)}")
            return False
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def resumed_words(folder: Path, words: list[str]) -> list[str]:
    """What goes on with a run; one that was killed before it was one is begun anew."""
    if (folder / "config.toml").exists():
        return ["--resume", str(folder)]
    shutil.rmtree(folder, ignore_errors=True)
    return words


def place(folder: Path) -> int:
    """The step of the newest checkpoint; -1 without one."""
    from mlaan import checkpoint

    return checkpoint.load(folder / "last.pt").progress["step"] if (folder / "last.pt").exists() else -1


def experiment(flags: list[str], folder: Path, moments: int, seed: int) -> dict[str, Any]:
    """One run in one go, then runs that are each killed once, at a random moment of it, and resumed.

    Returns:
        equal: for each of these whether its end is the uninterrupted one's, bit for bit.
        steps: for each the step it went on from.
        forgotten_equal: the same for one that went on in the middle without its loader's state.
    """
    chance = random.Random(seed)
    whole, cut = folder / "whole", folder / "cut"
    start = time.monotonic()
    finish(begin([*flags, "--run.folder", str(whole)]))
    length = time.monotonic() - start
    words = [*flags, "--run.folder", str(cut)]
    equal, steps = [], []
    last = place(whole)
    forgotten = None
    while len(equal) < moments:
        shutil.rmtree(cut, ignore_errors=True)
        if not kill(begin(words), chance.uniform(0, length)):
            continue
        steps.append(place(cut))
        if forgotten is None and 0 < steps[-1] < last:
            copy = folder / "forgetful"
            shutil.copytree(cut, copy)
            finish(begin(["--resume", str(copy)], forgetful=True))
            forgotten = same(final_state(copy), final_state(whole))
        finish(begin(resumed_words(cut, words)))
        equal.append(same(final_state(cut), final_state(whole)))
    return {"equal": equal, "steps": steps, "last": last, "forgotten_equal": forgotten, "seconds": length}


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = json.loads(sys.argv[1])
    print(json.dumps(experiment(asked["flags"], Path(asked["folder"]), asked["moments"], asked["seed"])))
