"""SIGINT, SIGTERM and SIGHUP as a wish to stop after the running step."""

import signal
from types import FrameType
from typing import Self


class Stopped(Exception):
    """Ends a run that was asked to stop, once its checkpoint is written."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGHUP set `signal_number`; a SIGINT after that raises KeyboardInterrupt.

    SIGHUP comes when a terminal is closed; where it is ignored, as after `nohup`, it stays so. Only for the main
    thread, as Python's signals are.

    Attributes:
        signal_number: the first signal that came; 0 before.
        at_once: the first signal raises Stopped, wherever the program is: for work that leaves nothing behind.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.signal_number = 0
        self.at_once = at_once

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = self.signal_number or number
        if self.at_once:
            raise Stopped(number)
