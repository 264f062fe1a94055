"""SIGTERM, SIGHUP and Ctrl-C, held back until training has a state to keep."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Interruption:
    """While it is open the first of these signals is noted, and raised when it closes.

    A second one is not held back. Outside the main thread, where Python gives no signals,
    it does nothing.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._former: dict[int, signal._HANDLER] = {}

    @property
    def came(self) -> bool:
        """Whether a signal is held back."""
        return self._number is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_IGN:  # by nohup
                    continue
                self._former[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do with the signal that came what would have been done at first."""
        self._restore()
        number = self._to_raise()
        if number is not None and error is None:
            signal.raise_signal(number)

    def _to_raise(self) -> int | None:
        return self._number
