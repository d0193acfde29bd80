"""The wish to stop: what counts as one, and that no run says it has stopped before its checkpoint is there."""

import signal

import pytest

from cli.test_long_runs import full_disk
from mlaan import checkpoint
from mlaan.engine import Engine
from mlaan.observe.stop import StopRequest
from trainer.test_trainer import stop_at
from trainer.tiny import STEPS, one_thread, start

__all__ = ["one_thread"]


def test_only_a_second_sigint_breaks_off():
    """A scheduler may send SIGTERM again while the checkpoint is written."""
    with StopRequest() as stop:
        try:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
                signal.raise_signal(number)
        except KeyboardInterrupt:
            pytest.fail("the wish of a scheduler was taken for a person's second Ctrl-C")
        assert stop.signal_number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal_number == signal.SIGTERM


def stop_after_a_test(monkeypatch) -> None:
    """A wish to stop that comes when the last batch of an epoch's test is done."""
    real = Engine.evaluate

    def evaluate(self, batches):
        evaluation = real(self, batches)
        signal.raise_signal(signal.SIGTERM)
        return evaluation

    monkeypatch.setattr(Engine, "evaluate", evaluate)


@pytest.mark.parametrize("moment", ["in a step", "after a test"])
def test_a_stop_on_a_full_disk_does_not_say_that_its_checkpoint_is_there(tmp_path, monkeypatch, capsys, moment):
    full_disk(monkeypatch, tmp_path / "run", range(1, 100))
    if moment == "in a step":
        stop_at(monkeypatch, STEPS - 2)
    else:
        stop_after_a_test(monkeypatch)
    assert start(tmp_path / "run") == 2
    said = capsys.readouterr()
    assert "stopped" not in said.out
    assert "No space left on device" in said.err
    assert "go on with --resume from the newest checkpoint, of step 0" in said.err
    assert checkpoint.load(tmp_path / "run" / "last.pt").progress["step"] == 0
