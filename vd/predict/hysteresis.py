"""Events: from the probability of each window to spans of time, as the windows come.

An event opens at one threshold and closes under a lower one, so that a curve that trembles
about a threshold is one event. Files and streams are cut into events by the same machine.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

_ROUNDING = 1e-6  # seconds


@dataclass(frozen=True)
class EventRules:
    """When events open, close, merge and count; times in seconds."""

    threshold: float
    end_threshold: float
    stride_seconds: float  # from a window's middle to the next
    min_seconds: float = 0.0  # shorter events are dropped, after merging
    merge_seconds: float = 2.0  # events so near to each other are one
    max_seconds: float = 300.0  # where the event ends and a new one begins


@dataclass(frozen=True)
class Event:
    """A span of violence; `end` None while it lasts.

    `peak` and `mean` are probabilities of windows, `peak_time` the middle of the highest one,
    `alarm_time` the end of the window that decided that there is an event.
    """

    id: int
    start: float
    end: float | None
    peak: float
    peak_time: float
    mean: float
    alarm_time: float

    def to_dict(self) -> dict[str, Any]:
        """The event as JSON values; times to a microsecond."""
        times = ("start", "end", "peak_time", "alarm_time")
        return {
            name: round(value, 6) if name in times and value is not None else value
            for name, value in asdict(self).items()
        }


class Message(NamedTuple):
    """What has become known: a new event, a higher peak of it, or its end."""

    type: Literal["new", "update", "end"]
    event: Event


@dataclass
class _Span:
    """An event under way: still open, or closed and waiting for one to merge with."""

    start: float
    continues: bool  # an event that was ended at the maximum
    end: float = 0.0
    open: bool = True
    total: float = 0.0  # of probabilities
    windows: int = 0
    peak: float = -1.0
    peak_time: float = 0.0
    between: tuple[float, int] = (0.0, 0)  # total and windows since it has closed
    id: int = 0  # 0: not announced
    alarm_time: float = 0.0

    def take(self, middle: float, end: float, probability: float) -> bool:
        """Take a window, and those since the event closed; whether it is the new peak."""
        self.open, self.end = True, end
        self.total += self.between[0] + probability
        self.windows += self.between[1] + 1
        self.between = 0.0, 0
        higher = probability > self.peak
        if higher:
            self.peak, self.peak_time = probability, middle
        return higher

    def event(self, ended: bool) -> Event:
        """The event as far as it is known."""
        end, mean = (self.end if ended else None), self.total / self.windows
        return Event(
            self.id, self.start, end, self.peak, self.peak_time, mean, self.alarm_time
        )


class EventMachine:
    """Takes windows in the order of their middles; gives messages as events become known.

    `new` comes when an event has reached the minimum, `end` when nothing can merge with it
    any more. An event that is ended at the maximum goes on as a new one at once, whatever
    its length.
    """

    def __init__(self, rules: EventRules) -> None:
        self._rules, self._announced = rules, 0
        self._span: _Span | None = None
        self._last_end = 0.0  # of the event before

    def push(self, middle: float, end: float, probability: float) -> list[Message]:
        """Take the window with this middle and end in seconds."""
        rules, messages = self._rules, list[Message]()
        reach = min(rules.stride_seconds / 2, end - middle)  # of a window's value
        begins, ends = middle - reach, middle + reach
        span = self._span
        if span and not span.open and self._is_apart(begins):
            messages += self.finish()
        span = self._span
        lasting = span is not None and span.open
        if probability >= (rules.end_threshold if lasting else rules.threshold):
            if span and ends - span.start > rules.max_seconds + _ROUNDING:
                messages += self.finish()
                self._span = _Span(max(begins, self._last_end), continues=lasting)
            elif span is None:
                self._span = _Span(max(begins, self._last_end), continues=False)
            messages += self._take(middle, end, ends, probability)
        elif span:
            span.open = False
            span.between = span.between[0] + probability, span.between[1] + 1
            if self._is_apart(ends):  # where the next window's value begins
                messages += self.finish()
        return messages

    def finish(self) -> list[Message]:
        """No window follows for now: end the event under way; if not announced, drop it."""
        span, self._span = self._span, None
        if span is None:
            return []
        self._last_end = span.end
        return [Message("end", span.event(ended=True))] if span.id else []

    def _is_apart(self, begins: float) -> bool:
        """Whether an event that begins then does not merge with the one under way."""
        assert self._span is not None
        return begins - self._span.end > self._rules.merge_seconds + _ROUNDING

    def _take(
        self, middle: float, end: float, ends: float, probability: float
    ) -> list[Message]:
        """Add a window to the event under way."""
        span = self._span
        assert span is not None
        higher = span.take(middle, ends, probability)
        if span.id:
            return [Message("update", span.event(ended=False))] if higher else []
        long = span.end - span.start >= self._rules.min_seconds - _ROUNDING
        if not (long or span.continues):
            return []
        self._announced += 1
        span.id, span.alarm_time = self._announced, end
        return [Message("new", span.event(ended=False))]
