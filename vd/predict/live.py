"""Events of streams while they come: the frames, windows and rules of files.

`LiveStream` takes frames from a program; `vd.predict.watch` reads addresses and cameras.
Both hand image pairs (what the backbone sees of a frame and its later one) to a `Pipeline`.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Float64, UInt8

from vd.data.clock import FRAMES_PER_SECOND
from vd.data.decode import FrameFeed, FrameSettings, Sink
from vd.errors import VdError
from vd.features.engines import Engine
from vd.features.extract import frame_features
from vd.features.sampling import Window
from vd.predict.frames import rgb_frame
from vd.predict.hysteresis import EventMachine, EventRules, Message
from vd.predict.windows import Cut, Cutter, Features

_TICK = Fraction(1, 1_000_000)  # seconds, in which pushed times are counted

Record = dict[str, Any]
Probabilities = Callable[[Sequence[Features]], Float64[np.ndarray, " N"]]


class Pair(NamedTuple):
    """What the backbone sees of a kept frame, and its time."""

    images_SxHxWx3: UInt8[np.ndarray, "S H W 3"]
    seconds: float  # of the source


class Lost(NamedTuple):
    """Frames are missing from here on, or have ended."""

    reason: str
    is_closed: bool = False  # whether the source has to be opened again


Item = Pair | Lost


class LiveSource:
    """One source after the backbone; keeps the features of at most T frames."""

    def __init__(
        self, name: str, clip_frames: int, window_seconds: float, rules: EventRules
    ) -> None:
        self.name = name
        self._cutter = Cutter(clip_frames, window_seconds, rules.stride_seconds)
        self._machine = EventMachine(rules)
        self._last: float | None = None  # seconds of the last frame
        self._gap: Record | None = None  # under way

    def push(
        self, row_D: Float16[np.ndarray, " D"], seconds: float
    ) -> list[Cut | Record]:
        """Take a frame; the gap that it ends, and the windows to score, in order."""
        ended = list[Cut | Record]()
        if self._gap is not None:
            end = max(seconds, self._gap["start"])
            ended, self._gap = [self._gap | {"end": end}], None
        self._last = seconds
        cuts = self._cutter.push(row_D, seconds, after_gap=False)
        return [*ended, *(cut for cut in cuts if cut.window)]

    def lose(self, reason: str) -> list[Cut | Record]:
        """No frame follows for now: the windows to score, and the gap that begins."""
        if self._last is None or self._gap is not None:
            return []
        start = self._last + 1 / FRAMES_PER_SECOND
        self._gap = {
            "type": "gap", "source": self.name, "start": start, "end": None, "reason": reason,
        }  # fmt: skip
        return [*self._cutter.gap(), self._gap]

    def scored(self, window: Window, probability: float) -> list[Record]:
        """What a window's probability makes known."""
        messages = self._machine.push(window.middle, window.end, probability)
        return self._records(messages)

    def noted(self, gap: Record) -> list[Record]:
        """What a gap makes known: it ends the event under way."""
        ended = self._machine.finish() if gap["end"] is None else []
        return [*self._records(ended), gap]

    def _records(self, messages: list[Message]) -> list[Record]:
        return [
            {"type": type_, "id": event.id, "source": self.name, **event.to_dict()}
            for type_, event in messages
        ]


class Pipeline:
    """The backbone and the head, batched over all sources."""

    def __init__(self, engine: Engine, probabilities: Probabilities) -> None:
        self._engine, self._probabilities = engine, probabilities
        self.batch = engine.batch  # images that it takes at a time
        self._steps = list[tuple[LiveSource, Cut | Record]]()  # to score, and gaps

    def run(self, items: Sequence[tuple[LiveSource, Item]]) -> list[Record]:
        """Take what has come, each source's in order; the records that this gives."""
        self.take(items)
        return self.score()

    def take(self, items: Sequence[tuple[LiveSource, Item]]) -> None:
        """Compute the features of what has come, each source's in order."""
        rows = iter(self._rows(items))
        for source, item in items:
            if isinstance(item, Pair):
                steps = source.push(next(rows), item.seconds)
            else:
                steps = source.lose(item.reason)
            self._steps += [(source, step) for step in steps]

    def score(self) -> list[Record]:
        """The records of all that was taken since the last time."""
        cuts = [step.features_LxD for _, step in self._steps if isinstance(step, Cut)]
        probabilities = iter(self._probabilities(cuts).tolist() if cuts else ())
        records, steps, self._steps = list[Record](), self._steps, []
        for source, step in steps:
            if isinstance(step, Cut):
                assert step.window is not None
                records += source.scored(step.window, next(probabilities))
            else:
                records += source.noted(step)
        return records

    def _rows(
        self, items: Sequence[tuple[LiveSource, Item]]
    ) -> Float16[np.ndarray, "F SD"]:
        """Features of the pairs among the items."""
        pairs = [
            (source.name, item) for source, item in items if isinstance(item, Pair)
        ]
        if not pairs:
            return np.zeros((0, 0), np.float16)
        images_FxSxHxWx3 = np.stack([pair.images_SxHxWx3 for _, pair in pairs])
        features_FxKxD = frame_features(images_FxSxHxWx3, self._engine, pairs[0][0])
        return features_FxKxD.reshape(len(pairs), -1)


class LiveStream:
    """Takes the frames of one stream, and says what has become known of its events.

    Made by `Predictor.stream`.
    """

    def __init__(
        self, pipeline: Pipeline, source: LiveSource, frames: FrameSettings
    ) -> None:
        self._pipeline, self._source = pipeline, source
        self._come = _Come()
        self._feed = FrameFeed(frames, self._come, _TICK, FRAMES_PER_SECOND)
        self._last: float | None = None

    def push(
        self, frame_HxWx3: UInt8[np.ndarray, "H W 3"], seconds: float
    ) -> list[Record]:
        """Take the next RGB frame, seen at `seconds` of any clock; the new records.

        A record is `{"type": "new" | "update" | "end", "id", "source", "start", "end",
        "peak", "peak_time", "mean", "alarm_time"}`. Eight frames a second are used. After
        more than half a second and ten usual steps without a frame the window starts again;
        up to 32 frames then wait for each other, until it is known that the rate has not
        changed. Raises `VdError` for another array, and for seconds that do not rise.
        """
        frame = rgb_frame(frame_HxWx3, "push()")
        if not np.isfinite(seconds) or (
            self._last is not None and seconds <= self._last
        ):
            raise VdError(
                f"push() was given {seconds} s after {self._last} s; give the time of each "
                "frame, later than that of the one before."
            )
        if self._last is None:
            self._come.origin = seconds
        self._last = seconds
        stamp = round((seconds - self._come.origin) / float(_TICK))
        self._feed.add(frame, stamp)
        return self._advance()

    def finish(self) -> list[Record]:
        """No frame follows: the last records; an event under way ends."""
        self._feed.finish()
        self._come.items.append(Lost("ended"))
        return self._advance()

    def _advance(self) -> list[Record]:
        """Run what has come through the pipeline."""
        items, self._come.items = self._come.items, []
        if not items:
            return []
        records = self._pipeline.run([(self._source, item) for item in items])
        return [record for record in records if record["type"] != "gap"]


class _Come(Sink):
    """Image pairs and gaps as they come."""

    def __init__(self) -> None:
        self.items = list[Item]()
        self.origin = 0.0  # seconds of the first frame

    def keep(
        self, images: UInt8[np.ndarray, "S H W 3"] | None, seconds: float, frames: int
    ) -> None:
        """Note a pair."""
        assert images is not None
        self.items.append(Pair(images, self.origin + seconds))

    def gap(self) -> None:
        """Note a gap."""
        self.items.append(Lost("missing"))
