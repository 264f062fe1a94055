"""What is known of one file while it comes: its number, its curve over time, its events."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from vd.data.clock import FRAMES_PER_SECOND
from vd.data.manifest import CLASSES
from vd.data.outcome import Outcome
from vd.features.extract import Stretch
from vd.features.sampling import Window
from vd.metrics.calibration import Calibration
from vd.predict.hysteresis import Event, EventMachine, EventRules
from vd.predict.windows import Cut, Cutter, Features, Span, with_lost

VERSION = 1  # of a line of `vd predict`; raised when a key changes its meaning
_PREDICTABLE = "truncated", "corrupt-frames", "timeout"  # from the frames that came

Score = Callable[[Iterable[Sequence[Features]]], Float64[np.ndarray, " N"]]


class Timeline(NamedTuple):
    """Probability of violence in windows of a video, at their middles in seconds."""

    seconds_W: Float64[np.ndarray, " W"] = np.zeros(0)
    probability_W: Float64[np.ndarray, " W"] = np.zeros(0)


@dataclass(frozen=True)
class Prediction:
    """What the detector says of one file; numbers are None when it failed.

    `probability` is the mean over a longer file; `peak` is that of its highest window, and
    `peak_time` the middle of it. Times in seconds from the first frame of the file.
    """

    path: Path
    outcome: Outcome
    probability: float | None = None
    label: str | None = None
    duration: float = 0.0  # of what was asked for, without the gaps
    peak: float | None = None
    peak_time: float | None = None
    events: tuple[Event, ...] = ()
    gaps: tuple[Span, ...] = ()  # start and length
    timeline: Timeline = field(default_factory=Timeline)

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON values: a line of `vd predict`."""
        return {
            "version": VERSION,
            "path": str(self.path),
            "probability": self.probability,
            "label": self.label,
            "outcome": self.outcome.outcome,
            "reason": self.outcome.reason,
            "frames": self.outcome.frames,
            "duration": self.duration,
            "peak": self.peak,
            "peak_time": self.peak_time,
            "events": [event.to_dict() for event in self.events],
            "gaps": [list(gap) for gap in self.gaps],
        }


class Recording:
    """Scores one file as its stretches come, with no more than T frames kept."""

    def __init__(
        self, score: Score, fitted: Calibration, rules: EventRules, cutter: Cutter
    ) -> None:
        self._score, self._fitted = score, fitted
        self._machine, self._cutter = EventMachine(rules), cutter
        self._total, self._blocks = 0.0, 0  # of the logits of blocks
        self._curve: list[tuple[float, float]] = []  # middle and probability
        self._events: list[Event] = []
        self._lost: list[Span] = []
        self._last = 0.0  # seconds of the last frame

    def take(self, stretch: Stretch) -> None:
        """Score what a stretch completes."""
        self._take(self._cuts(stretch))

    def _cuts(self, stretch: Stretch) -> Iterator[Cut]:
        frames = zip(
            stretch.features_FxSD,
            stretch.seconds_F.tolist(),
            stretch.after_gap_F.tolist(),
            strict=True,
        )
        for row_D, seconds, after_gap in frames:
            if after_gap and self._cutter.frames:
                start = self._last + 1 / FRAMES_PER_SECOND
                self._lost.append((start, seconds - start))
            self._last = seconds
            yield from self._cutter.push(row_D.copy(), seconds, after_gap)

    def _take(self, cuts: Iterable[Cut]) -> None:
        """Score cuts in order: blocks into the mean, windows into the curve and events."""
        windows = list[Window | None]()

        def views() -> Iterator[list[Features]]:
            for cut in cuts:
                windows.append(cut.window)
                yield [cut.features_LxD]

        logit_N = self._score(views())
        probability_N = self._fitted.probability(logit_N)
        for window, logit, probability in zip(
            windows, logit_N.tolist(), probability_N.tolist(), strict=True
        ):
            if window is None:
                self._total += logit
                self._blocks += 1
                continue
            self._curve.append((window.middle, probability))
            messages = self._machine.finish() if window.after_gap else []
            messages += self._machine.push(window.middle, window.end, probability)
            self._events += [m.event for m in messages if m.type == "end"]

    def finish(self, path: Path, outcome: Outcome, between: Span) -> Prediction:
        """The prediction; a file is predicted from whatever frames it gave."""
        is_lost = outcome.outcome == "quarantined"
        if not self._cutter.frames or (is_lost and outcome.reason not in _PREDICTABLE):
            return Prediction(path, outcome, duration=_covered(outcome, between))
        self._take(self._cutter.finish())
        self._events += [m.event for m in self._machine.finish()]
        if is_lost:  # less than half of it decodes
            outcome = replace(outcome, outcome="partial")
        mean_1 = np.array([self._total / self._blocks])
        probability = float(self._fitted.probability(mean_1)[0])
        violent = probability >= self._fitted.threshold
        if self._cutter.is_longer_than_a_clip:
            violent = len(self._events) > 0
        seconds_W, probability_W = map(np.array, zip(*self._curve, strict=True))
        gaps = with_lost(outcome.gaps, self._lost)
        gaps = [gap for gap in gaps if _overlap(gap, between)]
        highest = int(np.argmax(probability_W))
        end = max(min(outcome.span, between[1]), self._last)
        return Prediction(
            path,
            outcome,
            probability,
            CLASSES[violent],
            _covered(outcome, between),
            float(probability_W[highest]),
            round(min(float(seconds_W[highest]), end), 6),
            tuple(_until(event, end) for event in self._events),
            tuple(gaps),
            Timeline(seconds_W, probability_W),
        )


def _until(event: Event, end: float) -> Event:
    """An ended event, none of whose times is after the file's end.

    A window counts its last frame as an eighth of a second, which may be longer than the file.
    """
    assert event.end is not None
    return replace(
        event,
        end=min(event.end, end),
        peak_time=min(event.peak_time, end),
        alarm_time=min(event.alarm_time, end),
    )


def _overlap(gap: Span, between: Span) -> float:
    """Seconds of a gap (start and length) that are between two times."""
    start, length = gap
    return max(0.0, min(start + length, between[1]) - max(start, between[0]))


def _covered(outcome: Outcome, between: Span) -> float:
    """Seconds of a file between two times that frames cover."""
    within = between[0], min(between[1], outcome.span)
    if within == (0.0, outcome.span):
        return outcome.duration
    lost = sum(_overlap(gap, within) for gap in outcome.gaps)
    return max(0.0, within[1] - within[0] - lost)
