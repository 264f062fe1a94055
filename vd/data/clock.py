"""Clock: the time stamps of a video's frames as seconds that strictly rise."""

from collections import deque
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from statistics import median, median_low
from typing import Generic, NamedTuple, TypeVar

FRAMES_PER_SECOND = 8.0  # kept of a video; every frame of a slower one
_HELD = 32  # frames, at most, until a jump of the stamps is known to stay or to return
_HISTORY = 32  # accepted steps whose median is the usual step
_FEW = 8  # steps from which a median is trusted
GAP_STEPS, GAP_SECONDS = 10, 0.5  # a gap is longer than both
_SHORTEST_STEP = 1e-6  # seconds; a shorter one is an error of floats
_LONGEST_VIDEO = 1e9  # seconds, so that a float has room for the shortest step

T = TypeVar("T")


class Timed(NamedTuple, Generic[T]):
    """A frame and its time from the first frame."""

    frame: T
    seconds: float
    after_gap: bool = False


class _Anchor(NamedTuple):
    """A stamp and the time that it stands for."""

    stamp: int
    seconds: float


class Clock(Generic[T]):
    """Gives every frame a time, whatever its stamp.

    Stamps count in `time_base` seconds. One that falls back or is missing goes on one usual
    step after the last frame: the median of the last accepted steps, or 1 / `rate` before
    any is known. One that falls back by less than that, as two frames in one tick do, goes
    on half a step. One that jumps ahead is held with the frames behind it, until the stamps
    return (then it was wrong) or 32 frames show that they do not (then it is a gap).
    `hold` is called with each frame that is held.
    """

    def __init__(
        self, time_base: Fraction, rate: float, hold: Callable[[T], object]
    ) -> None:
        self.gaps: list[tuple[float, float]] = []  # start and length in seconds
        self._time_base, self._first_step, self._hold = time_base, 1 / rate, hold
        self._last = -self._first_step  # seconds of the last frame
        self._steps: deque[float] = deque(maxlen=_HISTORY)
        self._longest_step = 0.0  # accepted
        # By the first the clock goes on; by the second it has restarted, which is certain
        # when the stamps of as many frames as may be held have not returned to the first.
        self._anchors: list[_Anchor] = []
        self._restarted = 0  # frames
        self._held: list[tuple[T, int | None]] = []

    @property
    def has_stamps(self) -> bool:
        """Whether any frame had a stamp."""
        return bool(self._anchors)

    @property
    def usual_step(self) -> float:
        """Seconds from a frame to the next."""
        return median(self._steps) if self._steps else self._first_step

    @property
    def span(self) -> float:
        """Seconds from the first frame to one usual step after the last one."""
        return self._last + self.usual_step

    @property
    def reach(self) -> float:
        """The span, had the last frame been shown as long as any other."""
        return self._last + max(self._longest_step, self.usual_step)

    @property
    def duration(self) -> float:
        """Seconds that the frames cover: the span without the gaps."""
        return self.span - sum(length for _, length in self.gaps)

    def add(self, frame: T, stamp: int | None) -> list[Timed[T]]:
        """Take the next frame; the frames whose times are known now, in order."""
        if self._held:
            return self._add_behind_jump(frame, stamp)
        if stamp is None:
            return [self._at(frame, self.span)]
        if not self._anchors:
            self._anchors = [_Anchor(stamp, self.span)]
            return [self._at(frame, self.span)]
        for anchor in self._anchors:
            seconds = self._seconds(stamp, anchor)
            step = seconds - self._last
            usual = step <= GAP_SECONDS or step <= GAP_STEPS * self.usual_step
            if usual and step > _SHORTEST_STEP:
                self._restarted += anchor is not self._anchors[0]
                if anchor is self._anchors[0] or self._restarted == _HELD:
                    self._anchors = [anchor]
                self._accept(step)
                return [self._at(frame, seconds)]
        step = self._seconds(stamp) - self._last
        if _SHORTEST_STEP < step <= _LONGEST_VIDEO - self._last:
            return self._wait(frame, stamp)
        if -self.usual_step < step <= _SHORTEST_STEP:
            return [self._at(frame, self._last + self.usual_step / 2)]
        # One wrong stamp, or the first after a restart: the next frames decide.
        self._anchors[1:], self._restarted = [_Anchor(stamp, self.span)], 0
        return [self._at(frame, self.span)]

    def skip_to(self, stamp: int | None) -> None:
        """The next frame has this stamp, and no frame is missing before it."""
        if stamp is not None and self._anchors:
            self._last = self._seconds(stamp) - self.usual_step

    def finish(self) -> list[Timed[T]]:
        """The frames that are still held at the end of the video."""
        frames: list[Timed[T]] = []
        while self._held:
            frames += self._settle()
        return frames

    def _add_behind_jump(self, frame: T, stamp: int | None) -> list[Timed[T]]:
        usual = self.usual_step
        longest = max(GAP_STEPS * usual, GAP_SECONDS) + len(self._held) * usual
        if stamp is None or self._seconds(stamp) > self._last + longest:
            return self._wait(frame, stamp)
        held, self._held = self._held, []
        frames = [self._at(wrong, self.span) for wrong, _ in held]
        return frames + self.add(frame, stamp)

    def _wait(self, frame: T, stamp: int | None) -> list[Timed[T]]:
        """Hold a frame, unless too many are held."""
        self._hold(frame)
        self._held.append((frame, stamp))
        return self._settle() if len(self._held) == _HELD else []

    def _settle(self) -> list[Timed[T]]:
        """Accept the jump to the first held frame, as a gap or as a slower rate."""
        (frame, *behind), self._held = self._held, []
        stamps = [stamp for _, stamp in (frame, *behind) if stamp is not None]
        seconds = [self._seconds(stamp) for stamp in stamps]
        steps = [b - a for a, b in pairwise(seconds) if b > a]
        step, usual = seconds[0] - self._last, self.usual_step
        if len(steps) < _FEW:  # too few frames of another rate
            steps += self._steps
        if len(steps) < _FEW:  # a few frames far from each other
            steps.append(step)
        gap = step > max(GAP_STEPS * median_low(steps), GAP_SECONDS)
        if gap:
            self.gaps.append((self._last + usual, step - usual))
        else:
            self._accept(step)
        frames = [self._at(frame[0], seconds[0], gap)]
        for other in behind:
            frames += self.add(*other)
        return frames

    def _seconds(self, stamp: int, anchor: _Anchor | None = None) -> float:
        """The time of a stamp, by an anchor or by the one that the last frames went by."""
        anchor = anchor or self._anchors[-1 if self._restarted else 0]
        ticks = (stamp - anchor.stamp) * self._time_base.numerator
        return anchor.seconds + ticks / self._time_base.denominator

    def _accept(self, step: float) -> None:
        self._steps.append(step)
        self._longest_step = max(self._longest_step, step)

    def _at(self, frame: T, seconds: float, after_gap: bool = False) -> Timed[T]:
        self._last = seconds
        return Timed(frame, seconds, after_gap)
