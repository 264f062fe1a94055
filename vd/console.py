"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
)
from rich.text import Text

_PLAIN_EVERY_SECONDS = 10.0
_LIVE_EVERY_SECONDS = 0.25
_WIDE = 100  # columns, in which a bar leaves room for the words


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


def _terminal() -> Console | None:
    """The terminal on standard error, if it is one that can write over a line."""
    console = _Console(stderr=True, emoji=False)
    lively = console.is_terminal and not console.is_dumb_terminal
    return console if lively else None


class Ticker:
    """Counts finished items; knows rate and time left."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.start, self._said = 0, time.monotonic(), time.monotonic()
        self.note, self._share = "", 0.0

    def advance(
        self, count: int = 1, note: str = "", share: float | None = None
    ) -> None:
        """Count `count` more finished items; `note` stands behind the rate.

        `share` is what is done of all, where items differ much and more is known than they.
        """
        self.done += count
        self.note = note or self.note
        self._share = self.done / max(self.total, 1) if share is None else share
        self._show()

    def seconds(self) -> float:
        """Time since the beginning."""
        return max(time.monotonic() - self.start, 1e-9)

    def rate(self) -> str:
        """Finished items a second so far, and the time left, in words."""
        left = "time left unknown"
        if 0 < self._share < 1:
            seconds = self.seconds() * (1 - self._share) / self._share
            left = f"{duration(seconds)} left"
        elif self._share >= 1:
            left = "nearly done" if self.done < self.total else "0 s left"
        rate = self.done / self.seconds()
        return f"{rate:.1f} {self.unit}/s, {left}{self.note}"

    def line(self) -> str:
        """Done, rate and time left, in words."""
        return f"{self.title}: {self.done}/{self.total} {self.unit}, {self.rate()}"

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._said >= _PLAIN_EVERY_SECONDS:
            self._said = now
            say(self.line())


class _BarTicker(Ticker):
    """The same on a terminal."""

    def __init__(self, title: str, total: int, unit: str, bar: Progress) -> None:
        super().__init__(title, total, unit)
        self._bar, self._task = bar, bar.add_task(title, total=total, rate="")

    def _show(self) -> None:
        self._bar.update(self._task, completed=self.done, rate=self.rate())


@contextmanager
def track(title: str, total: int, unit: str) -> Iterator[Ticker]:
    """Show progress of `total` items while the block runs."""
    console = _terminal()
    if console is None:
        yield Ticker(title, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        *([BarColumn()] if console.width >= _WIDE else []),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _BarTicker(title, total, unit, bar)


@contextmanager
def live() -> Iterator[Callable[[Callable[[], str]], None]]:
    """Yield a function that shows what another one says, now and then.

    In place, four times a second, on a terminal; as a plain line every ten seconds
    elsewhere. Lines of `say` go above it.
    """
    shown = time.monotonic()

    def now_and_then(
        put: Callable[[str], None], every_seconds: float
    ) -> Callable[[Callable[[], str]], None]:
        def show(words: Callable[[], str]) -> None:
            nonlocal shown
            if time.monotonic() - shown >= every_seconds:
                shown = time.monotonic()
                put(words())

        return show

    console = _terminal()
    if console is None:
        yield now_and_then(say, _PLAIN_EVERY_SECONDS)
        return
    with Live(
        console=console, transient=True, auto_refresh=False, redirect_stdout=False
    ) as line:
        yield now_and_then(
            lambda words: line.update(Text(words), refresh=True), _LIVE_EVERY_SECONDS
        )


def duration(seconds: float) -> str:
    """Seconds as 1 h 02 min, 3 min 04 s or 5 s."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
