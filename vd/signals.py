"""The first signal ends a command; what a terminal or a scheduler sends twice ends it once."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
_ONE_SIGNAL_SECONDS = 1.0  # Slurm's comes twice: to the process and by its parent


class FirstSignal:
    """Raises `KeyboardInterrupt` at the first signal, and remembers which it was.

    A second one within a second is its echo; a later one is impatience, and ends the process
    at once.
    """

    def __init__(self) -> None:
        self.number: int = signal.SIGINT
        self._since: float | None = None

    @property
    def came(self) -> bool:
        """Whether a signal has come."""
        return self._since is not None

    @property
    def exit_code(self) -> int:
        """The exit code of a command that it ended."""
        return 128 + self.number

    def listen(self) -> None:
        """Take the signals from now on; one that is ignored, as by nohup, stays so."""
        sys.unraisablehook = self._dropped
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._come)

    def ignore(self) -> None:
        """Take no more: the process ends anyway."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _come(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._since is None:
            self.number, self._since = number, now
            raise KeyboardInterrupt
        if now - self._since > _ONE_SIGNAL_SECONDS:
            os._exit(128 + number)

    def _dropped(self, what: "sys.UnraisableHookArgs") -> None:
        """Python drops what is raised in a callback, a signal too: send it again."""
        if not issubclass(what.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(what)
            return
        self._since = None
        threading.Timer(0.05, os.kill, (os.getpid(), self.number)).start()


def end_at_once(code: int, last_words: str = "") -> NoReturn:
    """End the process without Python's own exit; the last words go to standard error.

    After a signal that would end by SIGINT where C code ran Python when it came, and can
    crash in a library that is half loaded.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, last_words.encode())
    os._exit(code)
