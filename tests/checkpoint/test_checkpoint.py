"""Checkpoints: whole or not at all, every fault told apart, no code run."""

import os
import pickle
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlaan import checkpoint, signed
from mlaan.checkpoint import Checkpoint
from mlaan.errors import UserError


def example(scale: float = 1.0, config: str = '[model]\nname = "resnet20"\n') -> Checkpoint:
    return Checkpoint(
        config=config,
        engine={"weights": torch.arange(1000.0) * scale, "momenta": {"a": [torch.ones(3)]}, "learning_rate": 0.1},
        loader={"epoch": 1, "position": 3},
        progress={"step": 7},
        random=checkpoint.random_state(torch.device("cpu")),
        metrics_bytes=11,
    )


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "last.pt"
    checkpoint.save(example(), path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_what_is_saved_is_loaded(saved):
    loaded = checkpoint.load(saved)
    assert torch.equal(loaded.engine["weights"], torch.arange(1000.0))
    assert (loaded.loader, loaded.progress, loaded.metrics_bytes) == ({"epoch": 1, "position": 3}, {"step": 7}, 11)
    assert os.listdir(saved.parent) == ["last.pt"]


def test_torch_alone_reads_it_too(saved):
    assert torch.load(saved, weights_only=True)["progress"] == {"step": 7}


def test_best_is_a_copy_that_later_checkpoints_leave_alone(saved):
    best = saved.with_name("best.pt")
    checkpoint.save(example(2.0), saved, [best])
    checkpoint.save(example(3.0), saved)
    assert checkpoint.load(best).engine["weights"][1] == 2
    assert checkpoint.load(saved).engine["weights"][1] == 3


def test_best_works_without_hard_links(saved, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    checkpoint.save(example(2.0), saved, [saved.with_name("best.pt")])
    assert checkpoint.load(saved.with_name("best.pt")).engine["weights"][1] == 2


def test_a_file_is_replaced_never_written_over(saved):
    best = saved.with_name("best.pt")
    checkpoint.save(example(), saved, [best])
    before = saved.read_bytes()
    with saved.open("rb") as last_reader, best.open("rb") as best_reader:
        checkpoint.save(example(2.0), saved, [best])
        assert last_reader.read() == best_reader.read() == before


def test_random_numbers_go_on_where_they_were(saved):
    torch.manual_seed(5)
    states = checkpoint.random_state(torch.device("cpu"))
    expected = torch.rand(4)
    torch.rand(9)
    checkpoint.set_random_state(states, torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)


def test_missing(tmp_path):
    assert "no checkpoint" in refusal(tmp_path / "none.pt")


def test_a_folder(tmp_path):
    assert "cannot read" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -40, -200])
def test_cut_short(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    assert "cut short" in refusal(saved)


def newest_three(folder: Path) -> list[Path]:
    """Checkpoints of steps 3, 2 and 1."""
    paths = [folder / f"step-{step}.pt" for step in (3, 2, 1)]
    for path, scale in zip(paths, (3.0, 2.0, 1.0), strict=True):
        checkpoint.save(example(scale), path)
    return paths


@pytest.mark.parametrize("sixteenths", range(16))
def test_the_one_before_is_taken_where_the_newest_is_cut(tmp_path, sixteenths):
    paths = newest_three(tmp_path)
    content = paths[0].read_bytes()
    paths[0].write_bytes(content[: len(content) * sixteenths // 16])
    found, path, skipped = checkpoint.load_first(paths)
    assert (path, found.engine["weights"][1]) == (paths[1], 2)
    assert skipped == [f"{paths[0]} is cut short, it ends after {len(content) * sixteenths // 16} bytes"]


def test_the_one_before_is_taken_where_a_bit_is_flipped(tmp_path):
    paths = newest_three(tmp_path)
    content = paths[0].read_bytes()
    for place in range(0, len(content), len(content) // 40):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        paths[0].write_bytes(damaged)
        _, path, [line] = checkpoint.load_first(paths)
        assert path == paths[1]
        assert "damaged" in line or "cut short" in line


def test_nothing_is_made_up_where_no_checkpoint_is_whole(tmp_path):
    paths = newest_three(tmp_path)
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"no checkpoint is whole.*step-3.*step-2.*step-1"):
        checkpoint.load_first(paths)
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load_first([])


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.9])
def test_one_flipped_bit(saved, where):
    content = bytearray(saved.read_bytes())
    content[int(len(content) * where)] ^= 1
    saved.write_bytes(content)
    assert "damaged" in refusal(saved)


@pytest.mark.parametrize("before_the_end", [200, 1_000_000, 2_000_000])
def test_a_flipped_bit_anywhere_in_a_file_of_several_pieces(tmp_path, before_the_end):
    path = tmp_path / "last.pt"
    signed.write({"format": checkpoint.FORMAT, "weights": torch.zeros(600_000)}, path)
    assert path.stat().st_size > 2 * signed._CHUNK
    assert signed.read(path)["weights"].shape == (600_000,)
    with path.open("r+b") as file:
        file.seek(-before_the_end, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert "damaged" in refusal(path)


def test_a_flipped_bit_in_the_checksum(saved):
    content = bytearray(saved.read_bytes())
    content[-5] ^= 1
    saved.write_bytes(content)
    assert "damaged" in refusal(saved)


def test_a_damaged_file_names_only_what_can_take_its_place(saved):
    content, best = saved.read_bytes(), saved.with_name("best.pt")
    anew = "put a copy of it in its place, or train anew"
    saved.write_bytes(content[:-3])
    assert refusal(saved).endswith(f"bytes: {anew}")
    best.write_bytes(content)
    assert refusal(saved).endswith(f"bytes: take {best}")
    best.write_bytes(content[:-3])
    saved.write_bytes(content)
    assert refusal(best).endswith(f"bytes: take {saved}")
    saved.unlink()
    os.link(best, saved)
    assert refusal(saved).endswith(f"bytes: {anew}")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_bomb_is_a_bomb(tmp_path):
    """The control: read carelessly, the object of the next tests does run its code."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["pickle", "torch", "signed"])
def test_a_pickle_that_would_run_code_runs_none(tmp_path, kind):
    path, ran = tmp_path / "last.pt", tmp_path / "ran"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(ran)))
    elif kind == "torch":
        torch.save({"format": checkpoint.FORMAT, "engine": Bomb(ran)}, path)
    else:
        bomb = example()
        bomb.engine["bomb"] = Bomb(ran)
        checkpoint.save(bomb, path)
    message = refusal(path)
    assert "nothing in it was executed" in message
    assert "mlaan" in message
    assert not ran.exists()


def test_another_format(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    message = refusal(saved)
    assert "format 1" in message
    assert "reads 2" in message


def test_the_same_run_may_change_its_length_and_its_run_settings():
    before = '[model]\nname = "a"\n[train]\nepochs = 3\n[run]\ntensorboard = true\n'
    after = before.replace("3", "5").replace("true", "false")
    checkpoint.require_same_run(example(config=before), after, Path("last.pt"))


@pytest.mark.parametrize(
    ("change", "key"),
    [(("resnet20", "resnet32"), "model.name"), (("0.1", "0.2"), "optim.rate"), (("rate = 0.1", ""), "optim.rate")],
)
def test_another_run_is_told_by_the_first_setting_that_differs(change, key):
    here = '[model]\nname = "resnet20"\n[optim]\nrate = 0.1\n'
    with pytest.raises(UserError, match=key) as caught:
        checkpoint.require_same_run(example(config=here.replace(*change)), here, Path("last.pt"))
    assert "resnet20" in str(caught.value)
    assert change[1] in str(caught.value)


def test_a_setting_that_only_the_checkpoint_has_tells_another_run():
    here = '[model]\nname = "resnet20"\n[optim]\nrate = 0.1\n'
    with pytest.raises(UserError, match=r"optim\.trust is 0\.01 there"):
        checkpoint.require_same_run(example(config=f"{here}trust = 0.01\n"), here, Path("last.pt"))


def in_a_process(work: Callable[[], object]) -> int:
    """Runs `work` in a fork of this process: its exit status, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved):
    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(UserError, match=r"cannot write .*last\.pt"):
            checkpoint.save(example(), saved)
        os._exit(0)

    before = saved.read_bytes()
    assert in_a_process(fill) == 0
    assert os.listdir(saved.parent) == ["last.pt"]
    assert saved.read_bytes() == before


@pytest.mark.parametrize("moment", ["torch.save", "os.fsync", "os.link", "pathlib.Path.replace"])
def test_a_process_that_dies_while_saving_leaves_whole_files(saved, moment, monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    best = saved.with_name("best.pt")
    checkpoint.save(example(), saved, [best])
    monkeypatch.setattr(moment, die)
    assert in_a_process(lambda: checkpoint.save(example(2.0), saved, [best])) == -signal.SIGKILL
    assert checkpoint.load(saved).engine["weights"][1] == checkpoint.load(best).engine["weights"][1] == 1
