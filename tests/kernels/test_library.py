"""Loading the native libraries, and what happens where they do not load."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from mlaan_kernels import library
from mlaan_kernels.library import NativeUnavailableError, runs_on, status, use_native
from mlaan_kernels.sgd_update import sgd_update

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty library folder in a process that has neither loaded nor warned yet."""
    monkeypatch.delenv("MLAAN_NATIVE", raising=False)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    monkeypatch.setattr(library, "_warned", False)
    library._load.cache_clear()
    yield tmp_path
    library._load.cache_clear()


def step() -> list[float]:
    param = torch.ones(2)
    rule = {"learning_rate": 0.5, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    sgd_update([param], [torch.ones(2)], [], [], **rule)
    return param.tolist()


@pytest.mark.usefixtures("native")
def test_the_built_libraries_load() -> None:
    cpu, cuda = status()
    assert (cpu.name, cpu.state) == ("cpu", "loaded"), cpu.detail
    if cuda.state == "missing":
        pytest.skip(cuda.detail)
    assert (cuda.name, cuda.state) == ("cuda", "loaded"), cuda.detail
    assert runs_on((9, 0), cuda.architectures)
    assert runs_on((8, 0), cuda.architectures)


def test_a_library_that_fails_gives_the_reference_and_one_warning(folder: Path) -> None:
    (folder / "libmlaan_cpu.so").write_bytes(b"not a library")
    (folder / "build.json").write_text(json.dumps({"torch": "1.2.3"}))
    with pytest.warns(RuntimeWarning, match="sgd_update run their slower PyTorch reference on cpu") as caught:
        results = [step(), step()]
    assert results == [[0.5, 0.5], [0.5, 0.5]]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    for cause in (
        "Could not load this library",
        "because: ",
        "libmlaan_cpu.so",
        "torch 1.2.3",
        "pip install",
    ):
        assert cause in text
    cpu, cuda = status()
    assert cpu.state == cuda.state == "failed"
    assert "it needs the cpu library" in cuda.detail


def test_a_missing_library_says_how_to_build_it(folder: Path) -> None:
    cpu, _ = status()
    assert cpu.state == "missing"
    assert str(folder) in cpu.detail
    assert "pip install --no-build-isolation" in cpu.detail
    with pytest.raises(NativeUnavailableError, match=r"native sgd_update cannot run on cpu: .*does not exist"):
        use_native("sgd_update", "native", CPU)


def test_the_reason_recorded_at_installation_is_the_reason_shown(folder: Path) -> None:
    (folder / "build.json").write_text(json.dumps({"no_cpu": "no C++ compiler was there"}))
    assert status()[0].detail == "no C++ compiler was there"


def test_mlaan_native_0_forces_the_reference_in_silence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAAN_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step() == [0.5, 0.5]
    assert [entry.state for entry in status()] == ["off", "off"]
    with pytest.raises(NativeUnavailableError, match="MLAAN_NATIVE=0"):
        use_native("sgd_update", "native", CPU)


@pytest.mark.usefixtures("native")
def test_mlaan_native_0_counts_after_loading_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert use_native("sgd_update", "auto", CPU)
    monkeypatch.setenv("MLAAN_NATIVE", "0")
    assert not use_native("sgd_update", "auto", CPU)


@pytest.mark.usefixtures("native")
def test_a_device_without_a_native_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_warned", False)
    with pytest.warns(RuntimeWarning, match="no native library for the device type 'mps'"):
        assert not use_native("sgd_update", "auto", torch.device("mps"))


def test_meta_tensors_do_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_warned", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not use_native("sgd_update", "auto", torch.device("meta"))


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="implementation is 'fast'"):
        use_native("sgd_update", "fast", CPU)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("capability", "architectures", "fits"),
    [
        ((8, 0), ("80-real",), True),
        ((8, 9), ("80-real",), True),
        ((9, 0), ("80-real",), False),
        ((7, 5), ("80-real", "90-real", "90a-real", "90-virtual"), False),
        ((9, 0), ("90a-real",), True),
        ((9, 1), ("90a-real",), False),
        ((10, 0), ("90a-real",), False),
        ((10, 0), ("90-virtual",), True),
        ((12, 1), ("100-real", "120-real"), True),
        ((8, 6), ("90-virtual",), False),
    ],
)
def test_which_gpus_a_build_serves(capability: tuple[int, int], architectures: tuple[str, ...], fits: bool) -> None:
    assert runs_on(capability, architectures) is fits
