"""Messages, progress of long work, and the one rule for signals.

A signal handler only sets a flag. Long work calls `check_interrupt` wherever it can stop
with nothing lost: between items, and every half second that it waits.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_PLAIN_EVERY_SECONDS, _PLAIN_AT_LEAST_EVERY_SECONDS = 10.0, 60.0
_WIDE = 100  # columns, in which a bar leaves room for the words

_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
_ECHO_SECONDS = 1.0  # Slurm sends one signal twice: to the process and by its parent
SLICE_SECONDS = 0.5  # the longest wait without asking for signals

T = TypeVar("T")


class Interrupted(KeyboardInterrupt):
    """A signal came, and the work has stopped where it can go on from."""

    kept = "finished work is kept. Run the same command again to go on"

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.exit_code = 128 + number


@dataclass
class _Signals:
    """The first signal since `listen`."""

    number: int = 0  # 0: none came
    since: float = 0.0
    held: bool = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Note the first signal; one that comes more than a second later ends the process."""
        if not self.number:
            self.number, self.since = number, time.monotonic()
        elif time.monotonic() - self.since > _ECHO_SECONDS:
            os._exit(128 + number)


_signals = _Signals()


def listen() -> None:
    """Note signals from now on; one that is ignored, as under nohup, stays ignored."""
    _signals.number, _signals.held = 0, False
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _signals.handle)


def interrupted() -> int:
    """The number of the signal that came, 0 for none."""
    return _signals.number


def check_interrupt() -> None:
    """Raise `Interrupted` if a signal came, unless signals are held."""
    if _signals.number and not _signals.held:
        raise Interrupted(_signals.number)


@contextmanager
def holding_interrupts() -> Iterator[None]:
    """In the block `check_interrupt` raises nothing: what runs in it asks `interrupted`."""
    _signals.held = True
    try:
        yield
    finally:
        _signals.held = False


def result_of(future: "Future[T]") -> T:
    """The result of a future; asks for signals every half second."""
    while not future.done():
        check_interrupt()
        wait([future], timeout=SLICE_SECONDS)
    return future.result()


class _Console(Console):
    """Standard error, where a closed pipe is an error like any other."""

    def on_broken_pipe(self) -> None:
        """Raise what rich would turn into an exit with code 1."""
        raise BrokenPipeError


def say(message: str) -> None:
    """Print one line for people on standard error, so standard output stays for data."""
    _Console(stderr=True, soft_wrap=True, highlight=False, emoji=False).print(
        message, markup=False
    )


def say_limits(limits: Sequence[str]) -> None:
    """Print what limits the figures above, and what a person can do about it."""
    if limits:
        say("before you trust this:")
    for limit in limits:
        say(f"  - {limit}")


class Ticker:
    """Counts finished items, and shows rate and time left."""

    def __init__(self, title: str, total: int, unit: str, bar: Progress) -> None:
        self.done = 0
        self._title, self._total, self._unit = title, total, unit
        self._start = self._shown = time.monotonic()
        self._first: tuple[float, float] | None = None  # seconds and share
        self._wait = _PLAIN_EVERY_SECONDS  # for the next plain line
        self._bar, self._task = (
            bar,
            bar.add_task(title, total=total, amount="", rate=""),
        )

    def advance(
        self, count: int = 1, note: str = "", share: float | None = None
    ) -> None:
        """Count `count` more finished items; `note` follows the rate.

        `share` is the finished share of the work, where the items are of unequal size.
        Raises `Interrupted` if a signal came.
        """
        check_interrupt()
        self.done += count
        share = self.done / max(self._total, 1) if share is None else share
        seconds = self.seconds()
        rest = self._rest(seconds, share)
        left = "time left unknown" if rest is None else f"{duration(rest)} left"
        rate = f"{self._rate(self.done / seconds)}, {left}{note}"
        if not self._bar.disable:
            self._bar.update(
                self._task, completed=self.done, total=self._total,
                amount=self._amount(), rate=rate,
            )  # fmt: skip
            self._bar.start()  # now that it has a number
        elif time.monotonic() - self._shown >= self._wait:
            self._shown = time.monotonic()
            self._wait = min(2 * self._wait, _PLAIN_AT_LEAST_EVERY_SECONDS)
            say(f"{self._title}: {self._amount()}, {rate}")

    def _rest(self, seconds: float, share: float) -> float | None:
        """Seconds left after so many, in which a share was done; None: unknown."""
        began, done = self._first = self._first or (seconds, share)
        if share <= done:  # the first item includes what is done once, as compilation
            return None
        return (seconds - began) * max(1 - share, 0) / (share - done)

    def _amount(self) -> str:
        return f"{self.done}/{self._total} {self._unit}"

    def _rate(self, rate: float) -> str:
        return f"{rate:.1f} {self._unit}/s"

    def seconds(self) -> float:
        """Time since the beginning."""
        return max(time.monotonic() - self._start, 1e-9)


class MediaTicker(Ticker):
    """Counts seconds of video, file after file; the rate is in times real time."""

    def __init__(self, title: str, bar: Progress) -> None:
        super().__init__(title, 0, "s", bar)
        self._before, self._file, self._reached = 0.0, 0, 0.0
        self._expected = 0  # seconds; 0: unknown

    def expect(self, seconds: float) -> None:
        """The length of all files."""
        self._total = self._expected = round(seconds)

    def reach(self, file: int, seconds: float) -> None:
        """So many seconds of a file are done, and all files before it."""
        if file != self._file:
            self._before += self._reached
            self._file = file
        self._reached = seconds
        done = round(self._before + seconds)
        self._total = max(self._total, done)
        self.advance(done - self.done)

    def _rest(self, seconds: float, share: float) -> float | None:
        """By the rate that is shown."""
        if not 0 < self.done <= self._expected:
            return None
        return (self._expected - self.done) * seconds / self.done

    def make_room(self) -> None:
        """Clear the bar where standard output, on which a line follows, is a terminal too."""
        if not self._bar.disable and sys.stdout.isatty():
            print("\r\x1b[K", end="")

    def _amount(self) -> str:
        return f"{clock(self.done)} of {clock(self._total)} of video"

    def _rate(self, rate: float) -> str:
        return f"{rate:.1f} times real time"


@contextmanager
def track(title: str, total: int, unit: str) -> Iterator[Ticker]:
    """Show progress of `total` items while the block runs."""
    with _bar() as bar:
        yield Ticker(title, total, unit, bar)


@contextmanager
def track_media(title: str) -> Iterator[MediaTicker]:
    """Show progress through seconds of video while the block runs."""
    with _bar() as bar:
        yield MediaTicker(title, bar)


@contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar on a terminal, not yet shown; one that shows nothing elsewhere."""
    console = _Console(stderr=True, emoji=False)
    plain = not console.is_terminal or console.is_dumb_terminal
    columns = (
        TextColumn("{task.description}"),
        *([BarColumn()] if console.width >= _WIDE else []),
        TextColumn("{task.fields[amount]}"),
        TextColumn("{task.fields[rate]}"),
    )
    # rich would write what is printed to standard output into the bar's standard error
    bar = Progress(
        *columns, console=console, transient=True, disable=plain, redirect_stdout=False
    )
    try:
        yield bar
    finally:
        bar.stop()


def duration(seconds: float) -> str:
    """Seconds as 1 h 02 min, 3 min 04 s or 5 s."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
