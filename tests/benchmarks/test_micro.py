"""The micro benchmarks without a GPU: every case's forms agree at a small size, and the gate shuts."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.micro import cases, gate
from benchmarks.micro.harness import PHASES, Case, Draw, Machine, runner

from mlaan_kernels.choice import using

small = pytest.mark.parametrize("case", cases.SMALL, ids=lambda case: f"{case.operator}-{case.shape}")


@pytest.fixture(autouse=True)
def plain():
    with using("reference"):
        yield


@small
def test_forms_agree_and_every_phase_runs(case: Case):
    sets = [case.inputs(Draw(torch.device("cpu"), seed)) for seed in range(2)]
    assert case.gap("fused", sets[0]) < 2**-5
    assert case.gap("fused", sets[0]) == case.gap("fused", sets[0]), "one call changes what the next one sees"
    for contender in ("fused", "reference", *case.others):
        works = [case.work(contender, inputs) for inputs in sets]
        for phase in case.bytes:
            once = runner(works, phase)
            for _ in range(3):
                once()


def test_every_operator_has_a_case_and_every_case_true_figures():
    kernels = Path(cases.__file__).parents[2] / "kernels" / "mlaan_kernels"
    assert {case.operator for case in cases.CASES} == {file.parent.name for file in kernels.glob("*/triton.py")}
    assert {case.operator for case in cases.CASES} == {case.operator for case in cases.SMALL}
    for case in cases.CASES:
        assert case.bytes.keys() <= set(PHASES)
        assert all(size > 0 for size in case.bytes.values())
    names = [(case.operator, case.shape) for case in cases.CASES]
    assert len(set(names)) == len(names)


def test_bytes_of_the_layer_that_the_design_counts():
    case = next(c for c in cases.CASES if c.operator == "batchnorm_act" and "+residual" in c.shape)
    # 256x256x56x56 in bfloat16 is 411 MB: 4 passes forwards, 7 backwards
    assert case.bytes == {"forward": 4 * 411_041_792, "backward": 7 * 411_041_792, "both": 11 * 411_041_792}


def test_a_wrong_operator_is_seen():
    right = cases.patch_mean((2, 16, 5, 5))
    wrong = Case(**{**vars(right), "fused": lambda h: right.reference(h) + h.mean() + 1})
    assert wrong.gap("fused", wrong.inputs(Draw(torch.device("cpu"), 0))) > 0.1
    unwritten = Case(**{**vars(right), "fused": lambda h: torch.empty_like(right.reference(h))})
    assert unwritten.gap("fused", unwritten.inputs(Draw(torch.device("cpu"), 0))) == float("inf")


def test_the_floor_is_the_slower_of_bytes_and_products():
    machine = Machine(bandwidth=100.0, rate=1000.0)
    assert machine.floor(200) == 2.0
    assert machine.floor(200, 1000) == 2.0
    assert machine.floor(200, 5000) == 5.0


REPORT = """<testsuites><testsuite>
<testcase classname="tests.kernels.test_good" name="a"/>
<testcase classname="tests.kernels.test_good_parts" name="b"><skipped/></testcase>
<testcase classname="tests.kernels.test_bad" name="c"/>
<testcase classname="tests.kernels.test_bad" name="d"><failure/></testcase>
<testcase classname="tests.kernels.test_idle" name="e"><skipped/></testcase>
</testsuite></testsuites>"""


def test_the_gate_reads_the_rounds_report(tmp_path, monkeypatch):
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    monkeypatch.setattr(gate, "_run", lambda operator, device: gate.Outcome(0, 0))
    assert gate.outcome(report, "good") == (1, 0)
    assert gate.refusal("good", "cuda", report) is None
    assert gate.refusal("bad", "cuda", report) == "refused: 1 of bad's tests failed"
    assert gate.refusal("idle", "cuda", report) == "refused: none of idle's tests ran on cuda"
    assert gate.refusal("good", "cuda", tmp_path / "none.xml") == "refused: none of good's tests ran on cuda"
    (tmp_path / "half.xml").write_text(REPORT[:100])
    assert gate.outcome(tmp_path / "half.xml", "good") == (0, 0)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def test_it(): pass", None),
        ("def test_it(): assert False", "refused: 1 of planted's tests failed"),
        ("import nowhere", "refused: 1 of planted's tests failed"),
        ("import os\ndef test_it(): os._exit(3)", "refused: 1 of planted's tests failed"),
        ("import pytest\n@pytest.mark.gpu\ndef test_it(): pass", "refused: none of planted's tests ran on cpu"),
        (None, "refused: none of planted's tests ran on cpu"),
    ],
    ids=["passes", "fails", "breaks", "crashes", "gpu alone", "no tests"],
)
def test_the_gate_runs_the_tests_once(source, reason, tmp_path, monkeypatch):
    folder = tmp_path / "tests" / "kernels"
    folder.mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    if source is not None:
        (folder / "test_planted_one.py").write_text(source)
    monkeypatch.setattr(gate, "TESTS", folder)
    monkeypatch.setattr(gate, "ROOT", tmp_path)
    gate.refusal.cache_clear()
    assert gate.refusal("planted", "cpu") == reason
    monkeypatch.setattr(gate, "_run", lambda operator, device: pytest.fail("they ran again"))
    assert gate.refusal("planted", "cpu") == reason
    gate.refusal.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_triton_has_no_rows():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks/micro/test_operators.py"]
    done = subprocess.run(command, cwd=Path(gate.__file__).parents[2], capture_output=True, text=True)
    assert "timed on a GPU alone" in done.stdout
    assert "passed" not in done.stdout
