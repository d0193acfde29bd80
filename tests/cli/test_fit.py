"""Runs that do not fit: refused before anything is loaded, and explained where they fail."""

import json
import re
import shlex
import warnings
from dataclasses import replace
from unittest import mock

import pytest
import torch

from mlaan import fit
from mlaan.build import build, choice_of
from mlaan.cli import main
from mlaan.cli.settings import load_config
from mlaan.models.resnet import BasicBlock
from mlaan.plan.machine import MACHINES
from trainer.tiny import config, flags, one_thread, resume, start

__all__ = ["one_thread"]
NOT_ENOUGH = torch.OutOfMemoryError("CUDA out of memory")
CPU_NOT_ENOUGH = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")


def words_in(said):
    """The overrides that a message says to add."""
    found = re.search(r"(?:add|config\.toml) ((?:--[a-z_.]+ \S+ ?)+)", said)
    assert found, said
    return [word.rstrip(",`") for word in shlex.split(found[1])]


def peak_of(words, capsys):
    assert main(["plan", *words, "--machine", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["plans"]["this plan"]["peak_bytes"]


def test_a_run_beyond_its_limit_is_refused_with_both_figures_and_what_fits(tmp_path, capsys):
    folder = tmp_path / "run"
    changes = {"data__batch": "64", "data__images": "64", "memory__limit": "7MiB"}
    with mock.patch("mlaan.data.loaders", side_effect=AssertionError("data were loaded")):
        assert start(folder, **changes) == 2
    said = capsys.readouterr().err
    assert "with 7.0 MiB allowed by memory.limit = '7MiB'; add --" in said
    assert said.count("\n") == 1
    assert not folder.exists()
    words = flags(folder, **changes)
    peak = peak_of(words, capsys)
    assert f"it would take {peak / 2**20:.1f} MiB at the peak" in said
    assert peak_of([*words, *words_in(said)], capsys) <= 7 * 2**20
    with mock.patch("mlaan.report.draw"):
        assert main(["train", *words, *words_in(said), "--train.epochs", "1"]) == 0


def test_a_run_that_nothing_makes_fit_is_told_to_look_with_plan(tmp_path, capsys):
    assert start(tmp_path, memory__limit="100KiB") == 2
    said = capsys.readouterr().err
    assert "no other schedule, cut or batch that was looked at fits: choose a smaller network" in said
    assert "`mlaan plan --memory 100KiB` with these settings" in said


def test_a_run_that_fits_says_nothing_and_a_small_one_is_not_even_predicted(tmp_path, capsys):
    with mock.patch("mlaan.fit._peak", side_effect=AssertionError("a digit net was predicted")):
        assert fit.require_fit(config()).note == ""
        with pytest.raises(AssertionError):
            fit.require_fit(config(memory__limit="20MiB"))
    assert start(tmp_path / "run", train__epochs="1", memory__limit="20MiB") == 0
    assert "fit" not in capsys.readouterr().err


def test_only_a_clear_excess_is_refused():
    settings = config(memory__limit="20MiB")
    for peak, refused in ((20.9 * 2**20, False), (21.1 * 2**20, True)):
        with mock.patch("mlaan.fit._peak", return_value=int(peak)):
            try:
                assert fit.require_fit(settings).note == ""
                assert not refused
            except fit.UserError:
                assert refused


def test_the_first_look_holds_for_all_that_the_predictions_say():
    for name, size in (("vit_s_16", 64), ("convnext_tiny", 64), ("resnet20", 32)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            words = [("model.name", name), ("data.name", "synthetic"), ("data.size", str(size)), ("data.batch", "8")]
            engine = fit.outline(load_config(None, [*words, ("method.preset", "light"), ("partition.modules", "2")]))
            peak = fit._peak(engine, 8, fit.machine_like(torch.device("cpu")))
        assert not fit._is_small(engine, 8, peak)


def test_a_model_that_does_not_run_on_the_meta_device_is_said_once_and_trained(tmp_path, capsys):
    with mock.patch("mlaan.fit.outline", side_effect=NotImplementedError("no such operator\non meta")):
        assert start(tmp_path / "run", train__epochs="1") == 0
    said = capsys.readouterr()
    assert said.out.count("resnet20 does not run on the meta device (no such operator)") == 1
    assert said.err == ""


def test_a_wrong_setting_is_told_as_ever(tmp_path, capsys):
    assert start(tmp_path / "run", partition__modules="90") == 2
    said = capsys.readouterr().err
    assert said.startswith("mlaan: partition.modules = 90 does not fit")
    assert said.count("\n") == 1


def fail_in(step, place, error, monkeypatch):
    """The forward of a block of module 1 fails in one training step; blocks are counted over all forwards."""
    real, seen = BasicBlock.forward, []

    def forward(self, x):
        if x.device.type != "meta" and self.training and x.shape[0] == 8 and self is place():
            seen.append(1)
            if len(seen) == step:
                raise error
        return real(self, x)

    monkeypatch.setattr(BasicBlock, "forward", forward)


@pytest.fixture
def engines(monkeypatch):
    """The engines of the runs that are started."""
    made = []

    def building(settings, kept):
        parts = build(settings, kept)
        made.append(parts.engine)
        return parts

    monkeypatch.setattr("mlaan.cli.train.build", building)
    return made


@pytest.mark.parametrize("error", [NOT_ENOUGH, CPU_NOT_ENOUGH], ids=["gpu", "cpu"])
def test_memory_that_does_not_do_is_told_with_task_blocks_figures_and_what_fits(
    error, tmp_path, capsys, monkeypatch, engines
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, mock.patch("mlaan.fit.nearest_change", wraps=fit.nearest_change) as asked:
        fail_in(2, lambda: engines[-1].backbone.blocks[5].module, error, patch)
        assert start(folder) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the memory of cpu did not do in Forward(1) (module 1, blocks 2.1-3.2): the step was predicted" in said
    words = flags(folder)
    peak = peak_of(words, capsys)
    assert re.search(
        rf"predicted to take {peak / 2**20:.1f} MiB, with [0-9.]+ GiB free on cpu at the start; add --", said
    )
    assert peak_of([*words, *words_in(said)], capsys) < peak
    assert all(call.args[2] < peak for call in asked.call_args_list)
    assert f"mlaan train --resume {folder}" in said
    assert resume(folder) == 0


def test_another_error_is_not_taken_for_memory(tmp_path, monkeypatch, engines):
    fail_in(2, lambda: engines[-1].backbone.blocks[5].module, RuntimeError("shapes differ"), monkeypatch)
    with pytest.raises(RuntimeError, match="shapes differ"):
        start(tmp_path / "run")


def test_a_resumed_run_is_told_to_start_anew_with_other_settings(tmp_path, capsys):
    folder = tmp_path / "run"
    assert start(folder, train__epochs="1") == 0
    capsys.readouterr()
    assert resume(folder, "--train.epochs", "2", "--memory.limit", "3400KiB") == 2
    said = capsys.readouterr().err
    assert "a run that goes on keeps its settings, so start a new one" in said
    assert f"mlaan train --config {folder / 'config.toml'} --" in said
    assert resume(folder, "--train.epochs", "2", "--memory.limit", "1GiB") == 0


def test_the_limit_of_a_gpu_is_set(monkeypatch):
    properties = mock.Mock(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    device, settings = torch.device("cuda", 0), config(memory__limit="20GiB")
    with mock.patch("torch.cuda.set_per_process_memory_fraction") as fraction:
        fit.hold_to_limit(settings, device)
        fit.hold_to_limit(settings, torch.device("cpu"))
        fit.hold_to_limit(config(), device)
    fraction.assert_called_once_with(0.25, device)


def test_what_a_device_has_left_is_known_here(monkeypatch):
    here = fit.available(config(), torch.device("cpu"))
    assert here is not None
    assert 2**27 < here.size < 2**45
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 80 * 2**30))
    assert fit.available(config(), torch.device("cuda", 0)) == (3 * 2**30, "3.00 GiB free on cuda:0")
    assert choice_of(config()).batch == 8


def test_what_libraries_take_counts_against_the_memory():
    engine = build(config()).engine
    bare = MACHINES["cpu"]
    assert fit._peak(engine, 8, replace(bare, workspace=3 << 20)) == fit._peak(engine, 8, bare) + (3 << 20)
