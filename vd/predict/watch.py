"""Watch addresses and cameras: their events, gaps and states as records, as they come."""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from vd.config import LiveConfig
from vd.console import SLICE_SECONDS, check_interrupt, holding_interrupts, say
from vd.predict.live import Item, LiveSource, Lost, Pair, Record
from vd.predict.predictor import Predictor
from vd.predict.readers import (
    Backlog,
    Connected,
    Ended,
    Failed,
    Opener,
    Reader,
    Taken,
    open_source,
)
from vd.predict.sources import mask_password

_SCORE_SECONDS = 0.5  # windows wait so long for others while pairs wait, too
_STATUS_SECONDS = 10.0
_CLOSING_SECONDS = 1.0  # for the readers that do not wait


def watch(
    addresses: Sequence[str],
    predictor: Predictor,
    config: LiveConfig = LiveConfig(),  # noqa: B008  # immutable
    seconds: float = float("inf"),
    opener: Opener = open_source,
    status_seconds: float = _STATUS_SECONDS,
) -> Generator[Record]:
    """Records of all sources as they come, until all have ended or `seconds` have passed.

    `new`, `update` and `end` of events as `LiveStream.push` gives them, `gap` and `status`
    (docs/data_format.md). Each source is read by a thread; the backbone takes image pairs of
    all together. An interrupt gives the ends of events under way, and is raised then. The last
    status of every source is `ended`. `opener` opens an address as a PyAV container.
    """
    predictor.wait()
    watcher = _Watcher(addresses, predictor, status_seconds)
    readers = [
        Reader(number, address, watcher.backlog, predictor.frames, config, opener)
        for number, address in enumerate(addresses)
    ]
    for reader in readers:
        reader.start()
    try:
        yield from watcher.records(time.monotonic() + seconds)
    finally:
        for reader in readers:
            reader.stop()
        watcher.backlog.close()
        until = time.monotonic() + _CLOSING_SECONDS
        for reader in readers:
            reader.join(max(0.0, until - time.monotonic()))


@dataclass
class _Source:
    """What is known of one source, beside its events."""

    live: LiveSource
    state: str = "connecting"
    reason: str = ""
    began: float | None = None  # Unix time of its second 0
    seconds: float = 0.0  # of the last frame that was scored
    frames: int = 0
    is_told: bool = False  # whether it was said that pairs are dropped
    lag: float = 0.0  # the longest since the last status

    def status(self, dropped: int) -> Record:
        """The state as a record; the lag is counted from here on."""
        seen = self.frames + dropped
        lag, self.lag = self.lag, 0.0
        return {
            "type": "status", "source": self.live.name, "state": self.state,
            "reason": self.reason, "began": self.began, "seconds": self.seconds,
            "frames": self.frames, "dropped": dropped,
            "share_dropped": dropped / seen if seen else 0.0, "lag": lag,
        }  # fmt: skip


class _Watcher:
    """Takes what the readers hand over, round by round."""

    def __init__(
        self, addresses: Sequence[str], predictor: Predictor, status_seconds: float
    ) -> None:
        self.backlog = Backlog(len(addresses))
        self._pipeline = predictor.pipeline()
        self._sources = [
            _Source(predictor.live_source(mask_password(address)))
            for address in addresses
        ]
        # Few pairs at a time: where the backbone is behind, holes between them are short.
        filling = -(-self._pipeline.batch // len(predictor.frames.streams))
        self._round = max(len(addresses), filling)
        self._unscored = list[Taken]()  # pairs
        self._scored = time.monotonic()
        self._every = status_seconds
        self._due = time.monotonic() + status_seconds

    def records(self, until: float) -> Iterator[Record]:
        """The records, until a time or until all sources have ended."""
        try:
            while time.monotonic() < until and not self._all_ended():
                check_interrupt()
                taken = self.backlog.take(self._round, SLICE_SECONDS)
                yield from self._process(taken)
                if time.monotonic() >= self._due:
                    self._due = time.monotonic() + self._every
                    yield from map(self._status, range(len(self._sources)))
                    self._say_drops()
        except KeyboardInterrupt:
            with holding_interrupts():
                rest = self._finish()
            yield from rest
            raise
        yield from self._finish()

    def _all_ended(self) -> bool:
        return all(source.state == "ended" for source in self._sources)

    def _status(self, number: int) -> Record:
        return self._sources[number].status(self.backlog.dropped[number])

    def _say_drops(self) -> None:
        """Say once of a source that not all of it is seen."""
        for source, dropped in zip(self._sources, self.backlog.dropped, strict=True):
            if dropped and not source.is_told:
                source.is_told = True
                say(
                    f"{source.live.name}: {dropped} of {source.frames + dropped} image pairs "
                    "are dropped so far, because the backbone is too slow; give it fewer "
                    "streams, a run of --feature-preset fast, or more cores"
                )

    def _finish(self) -> list[Record]:
        """The ends of all events under way; then every source has ended."""
        left = [n for n, source in enumerate(self._sources) if source.state != "ended"]
        self._pipeline.take([(self._sources[n].live, Lost("stopped")) for n in left])
        records = [record for record in self._score() if record["type"] != "gap"]
        for number in left:
            source = self._sources[number]
            source.state, source.reason = "ended", "stopped"
        return records + [self._status(number) for number in left]

    def _process(self, taken: Sequence[Taken]) -> list[Record]:
        """Run what was taken through the backbone, and through the head when it is time."""
        items, changed = list[tuple[LiveSource, Item]](), dict[int, None]()
        for number, note, _ in taken:
            source = self._sources[number]
            if isinstance(note, Failed):
                raise note.error
            if isinstance(note, Pair):
                items.append((source.live, note))
                source.frames, source.seconds = source.frames + 1, note.seconds
                continue
            if isinstance(note, Lost | Ended):
                items.append((source.live, Lost(note.reason)))
            if self._turn(source, note):
                changed[number] = None
        self._pipeline.take(items)
        self._unscored += [one for one in taken if isinstance(one.note, Pair)]
        due = time.monotonic() - self._scored >= _SCORE_SECONDS
        if not (changed or due or self.backlog.is_empty()):
            return []
        return self._score() + [self._status(number) for number in changed]

    def _score(self) -> list[Record]:
        """The records of what has been through the backbone."""
        records = self._pipeline.score()
        self._scored = time.monotonic()
        for number, _, arrived in self._unscored:
            source = self._sources[number]
            source.lag = max(source.lag, self._scored - arrived)
        self._unscored.clear()
        return records

    def _turn(self, source: _Source, note: Lost | Connected | Ended) -> bool:
        """Take a new state of a source and say it; whether it is a new one."""
        name = source.live.name
        if isinstance(note, Connected):
            source.began, state, reason = note.began, "connected", ""
            message = f"{name}: connected ({note.description})"
        elif isinstance(note, Ended):
            state, reason = "ended", note.reason
            message = f"{name}: ended" + (f" ({reason})" if reason != state else "")
        elif note.is_closed:
            state, reason = "lost", note.reason
            message = f"{name}: lost ({reason}); it is opened again"
        else:  # the connection lasts
            return False
        new = (state, reason) != (source.state, source.reason)
        source.state, source.reason = state, reason
        if new:
            say(message)
        return new
