"""The GPU round without a GPU: what it would run, and what it makes of the outcomes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

STEP = {
    "benchmark": "imagenet",
    "case": "resnet101-8-light",
    "contender": "ours",
    "ms": {"p20": 1.0, "p50": 2.0, "p80": 3.0},
    "time_ratio": {"end-to-end": {"median": 1.25}, "two-path": {"median": 0.4}},
    "peak_ratio": {"end-to-end": 0.41},
    "device": "NVIDIA H100",
    "commit": "abc+changes",
}
EXECUTORS = [
    STEP
    | {"benchmark": "executors", "case": "resnet50-8-light-streams", "contender": "streams"}
    | {"time_ratio": {"eager": {"median": 0.9}}, "peak_ratio": {}, "lanes": 3, "overlap": 0.25},
    STEP
    | {"benchmark": "executors", "case": "resnet32-8-paper", "contender": "graph", "peak_ratio": {}}
    | {"time_ratio": {"eager": {"median": 1.0}}, "obstacle": "no graphs here"},
]
LOADERS = [
    STEP
    | {"benchmark": "data", "case": "loader", "contender": name, "images_per_second": rate, "waited": 0.04}
    | {"time_ratio": {}, "peak_ratio": {}}
    for name, rate in (("torchvision, PIL", 9000.0), ("ours, packed uint8", 7000.0))
]
FACTS = {"device": "NVIDIA H100", "commit": "abc+changes", "driver": "580.1", "torch": "2.11", "triton": "3.6"}
MICRO = {
    "benchmarks": [
        {
            "name": "test_resnet50[cuda-native]",
            "stats": {"median": 0.004, "data": [0.002, 0.003, 0.004, 0.005, 0.006, 0.007]},
            "extra_info": {"share": 0.9, "shape": "25.6 M", "dtype": "float32"},
        }
    ]
}


@pytest.fixture
def round_in(tmp_path, monkeypatch):
    """The round with all its files under a folder of the test."""
    for name in ("FACTS", "MICRO", "STEPS", "EXECUTORS", "DATA", "TESTS", "ENVIRONMENT"):
        monkeypatch.setattr(gpu, name, tmp_path / name)
    monkeypatch.setattr(gpu, "find_tool", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(gpu, "_obstacle", lambda: None)
    return tmp_path


def play(failing=()):
    """A stand-in for the machine: writes what each stage would, and fails where told to."""
    ran = []

    def run(stage):
        ran.append(stage.name)
        outputs = {"machine": (gpu.FACTS, FACTS), "micro": (gpu.MICRO, MICRO), "steps": (gpu.STEPS, [STEP])}
        outputs |= {"executors": (gpu.EXECUTORS, EXECUTORS), "data": (gpu.DATA, LOADERS)}
        if stage.name not in failing and stage.name in outputs:
            file, content = outputs[stage.name]
            file.write_text(json.dumps(content))
        return stage.name not in failing, 1.0

    return run, ran


def test_dry_run_prints_every_command_and_runs_none(round_in, capsys):
    assert gpu.main(["--dry-run", "--commit", "abc"], run=lambda stage: pytest.fail(f"ran {stage}")) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(gpu.stages()) == 9
    text = "\n".join(printed)
    for part in ("venv --system-site-packages", "--no-deps --no-build-isolation", "-m gpu", "benchmarks/micro -k cuda"):
        assert part in text
    assert "benchmarks.imagenet --budget" in text
    assert "benchmarks.executors --budget" in text
    assert "compute-sanitizer --error-exitcode 1 --tool racecheck" in text
    assert text.count("--commit abc") == 3
    assert not list(round_in.iterdir())


def test_dry_run_from_the_command_line_needs_the_standard_library_alone():
    root = Path(gpu.__file__).parents[1]
    command = [sys.executable, "-S", "-m", "benchmarks.gpu", "--dry-run"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 9), done.stderr


@pytest.mark.parametrize("more", [False, True])
def test_each_round_ends_in_ten_minutes(more):
    assert sum(stage.seconds for stage in gpu.stages(more=more)) < 600
    for stage in gpu.stages(more=more):
        for budget in re.findall(r"--budget[= ](\d+)", " ".join(stage.command)):
            assert int(budget) + gpu.SPARE == stage.seconds


def test_a_good_round(round_in, capsys):
    run, ran = play()
    assert gpu.main(["--results", str(round_in / "results")], run) == 0
    assert ran == [stage.name for stage in gpu.stages()]
    [file] = (round_in / "results").iterdir()
    assert file.name.endswith("-nvidia-h100-abc-changes.json")
    step, streams, _, micro = json.loads(file.read_text())
    assert streams["driver"] == "580.1"
    assert step["driver"] == micro["driver"] == "580.1"
    assert micro["ms"] == pytest.approx({"p20": 3.0, "p50": 4.0, "p80": 6.0})
    assert (micro["shape"], micro["dtype"]) == ("25.6 M", "float32")
    printed = capsys.readouterr().out
    assert "resnet101-8-light ours" in printed
    assert "90% of the floor's speed" in printed
    assert "streams 3 overlap 25%" in printed
    assert "FAILED: no graphs here" in printed
    assert printed.count("passed") == 9
    [line] = [line for line in printed.splitlines() if line.startswith("img/s of the two-path schedule")]
    assert line.split()[-4:] == ["2.00", "3.00", "2.50", "good"]
    [line] = [line for line in printed.splitlines() if line.startswith("img/s with streams")]
    assert line.split()[-4:] == ["1.05", "1.15", "1.11", "good"]
    assert "not measured" in printed


@pytest.mark.parametrize("failing", ["install", "tests", "machine", "steps", "executors"])
def test_a_failing_stage_hides_no_other(round_in, failing, capsys):
    gpu.STEPS.write_text(json.dumps([STEP]))  # left over from another round
    run, ran = play([failing])
    assert gpu.main(["--results", str(round_in / "results")], run) == 1
    assert len(ran) == 9
    [file] = (round_in / "results").iterdir()
    kinds = [row["benchmark"] for row in json.loads(file.read_text())]
    missing = {"steps": "imagenet"}.get(failing, failing)
    assert kinds == [kind for kind in ("imagenet", "executors", "executors", "micro") if kind != missing]
    printed = capsys.readouterr().out
    assert printed.count("passed") == 8
    assert f"{failing:<12} FAILED" in printed


def test_the_second_round_measures_only_what_the_first_left_out_and_keeps_its_rows(round_in, capsys):
    for words in ([], ["--more"]):
        run, ran = play()
        assert gpu.main([*words, "--results", str(round_in / "results")], run) == 0
    assert ran == ["environment", "install", "machine", "steps", "data"]
    assert "--more" in gpu.stages(more=True)[-2].command
    assert "--more" not in " ".join(" ".join(stage.command) for stage in gpu.stages())
    first, second = sorted((round_in / "results").iterdir(), key=lambda file: len(file.name))
    assert second.name == f"{first.stem}-more.json"
    assert [row["benchmark"] for row in json.loads(second.read_text())] == ["imagenet", "data", "data"]
    printed = capsys.readouterr().out
    assert "7000 img/s, steps waited 4%" in printed
    [line] = [line for line in printed.splitlines() if line.startswith("loader, img/s") and "measured" not in line]
    assert line.split()[-4:] == ["6,000", "8,000", "7,000", "good"]


def test_a_tool_that_is_not_there_is_said_and_no_failure(round_in, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "find_tool", lambda name: None)
    run, ran = play()
    assert gpu.main(["--results", str(round_in / "results")], run) == 0
    assert [stage.name for stage in gpu.stages() if stage.name not in ran] == ["memcheck", "racecheck"]
    assert "racecheck    not run: compute-sanitizer is not on this machine" in capsys.readouterr().out


def test_a_stage_that_takes_too_long_is_ended_with_its_children(round_in, capsys):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    good, seconds = gpu.run_stage(gpu.Stage("slow", (sys.executable, "-c", code), 1))
    assert (good, seconds < 20) == (False, True)
    assert "slow: ended, its 1 s are over" in capsys.readouterr().err


def test_a_command_that_fails_is_seen(round_in):
    good, _ = gpu.run_stage(gpu.Stage("good", (sys.executable, "-c", ""), 60))
    bad, _ = gpu.run_stage(gpu.Stage("bad", (sys.executable, "-c", "raise SystemExit(3)"), 60))
    missing, _ = gpu.run_stage(gpu.Stage("missing", (str(round_in / "no-such-program"),), 60))
    assert (good, bad, missing) == (True, False, False)


def test_the_environment_sees_this_pythons_packages(round_in):
    gpu.share_packages()
    assert gpu.run_stage(gpu.stages()[0])[0]
    python = gpu.ENVIRONMENT / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import importlib.util as u; print(u.find_spec('torch').origin)"], capture_output=True, text=True
    )
    assert found.stdout.strip() == __import__("torch").__file__


def test_without_a_gpu_one_line_and_a_failure(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([], run=lambda stage: pytest.fail(f"ran {stage}")) == 1
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "no CUDA device" in err
