"""Figures of machines: known ones, measured ones, and their text."""

import pytest
import torch

from mlaan.plan.machine import MACHINES, Machine, measure_machine


@pytest.mark.parametrize("name", MACHINES)
def test_figures_come_back_from_their_text(name):
    machine = MACHINES[name]
    assert Machine.from_json(machine.to_json()) == machine
    assert machine.peak("float32") > 0


@pytest.mark.parametrize("text", ["{}", "[1]", "not json", '{"name": "x", "flops": {}}'])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"machine's figures|Expecting value"):
        Machine.from_json(text)


def test_a_precision_that_a_machine_lacks_runs_as_float32():
    assert MACHINES["cpu"].peak("float16") == MACHINES["cpu"].peak("float32")
    assert MACHINES["h100"].peak("bfloat16") > MACHINES["h100"].peak("tf32") > MACHINES["h100"].peak("float32")


def test_a_cpu_is_measured_within_sane_bounds():
    machine = measure_machine(torch.device("cpu"), seconds=0.5)
    assert machine.kind == "cpu"
    assert 1e8 < machine.peak("float32") < 1e13
    assert 1e8 < machine.bandwidth < 1e12
    assert 1e-7 < machine.launch < 1e-2
    assert machine.memory > 2**28
