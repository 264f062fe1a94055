"""What `vd predict` says and writes: lines for people, and files in --out."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import av

from vd.config import OutputConfig
from vd.console import clock, say
from vd.data.decode import WHOLE
from vd.data.outcome import Outcome
from vd.files import explaining, write_csv, write_json, write_text
from vd.predict.hysteresis import Event, EventRules
from vd.predict.recording import Prediction
from vd.predict.sources import is_written
from vd.predict.videos import annotation, write_key_frames, write_video
from vd.predict.windows import Span

if TYPE_CHECKING:
    import jinja2

_EVENT_COLUMNS = ["path", *(field.name for field in fields(Event))]
_TIMELINE_COLUMNS = ["path", "seconds", "probability"]
_LABEL = "violence"
_PLAYED = ".mp4", ".m4v", ".webm", ".mov"  # by browsers


def report(name: str, prediction: Prediction) -> None:
    """Say what a person should know of a file that is not whole."""
    outcome = prediction.outcome
    if prediction.probability is None:
        say(f"{name} could not be predicted: {outcome.reason}")
    elif outcome.outcome == "partial":
        say(
            f"{name} is partial ({outcome.reason}): predicted from the {outcome.frames} "
            "frames that could be decoded"
        )


class Outputs:
    """The files of --out; those of one file as soon as it is done, the tables at the end.

    With several files, what belongs to one of them is in a folder of its own.
    """

    def __init__(
        self,
        folder: Path,
        config: OutputConfig,
        names: Sequence[str],
        rules: EventRules,
        between: Span,
    ) -> None:
        self._folder, self._config, self._rules = folder, config, rules
        self._between = between
        self._several = len(names) > 1
        self._sources = {Path(name).resolve() for name in names}
        self._taken: Counter[str] = Counter()
        self._events: list[dict[str, Any]] = []
        self._timeline: list[dict[str, Any]] = []
        self._database: dict[str, Any] = {}  # as ActivityNet has it
        self._labels: dict[str, Any] = {}  # as FiftyOne has them
        self._videos: dict[str, str] = {}
        with explaining(folder):
            folder.mkdir(parents=True, exist_ok=True)  # or fail before the work

    def add(self, name: str, prediction: Prediction) -> None:
        """Note a file's events and curve, and write its picture, subtitles and page.

        What an earlier run wrote of the file is removed, also when it could not be predicted.
        """
        key = self._key_of(name)
        folder = self._folder / key if self._several else self._folder
        _remove_earlier(folder, self._sources)
        if prediction.probability is None:
            return
        rows = [{"path": name, **event.to_dict()} for event in prediction.events]
        self._events += rows
        self._timeline += [
            {"path": name, "seconds": round(float(at), 6), "probability": float(p)}
            for at, p in zip(*prediction.timeline, strict=True)
        ]
        self._database[name] = _activitynet(prediction)
        self._labels[key] = _fiftyone(prediction.events)
        video = _path_from(self._folder, prediction.path)
        self._videos[key + Path(name).suffix] = video
        # first, since by its time a later run knows what was written with it
        write_text(folder / "events.vtt", subtitles(prediction.events))
        from vd import plots  # slow to import

        events = [(e.start, e.end or e.start) for e in prediction.events]
        gaps = [(start, start + length) for start, length in prediction.gaps]
        thresholds = self._rules.threshold, self._rules.end_threshold
        picture = plots.timeline(*prediction.timeline, *thresholds, events, gaps)
        plots.save(picture, folder / "timeline.png")
        self._write_page(prediction, folder, name, prediction.path)
        if prediction.outcome.reason == "timeout":
            say(f"{name}: its decoder hangs, so no picture or video of it is written")
            return
        try:
            self._write_videos(prediction, folder, name)
        except av.error.FFmpegError as error:
            say(f"{name}: no picture or video of it can be written ({error})")

    def _write_page(
        self, prediction: Prediction, folder: Path, name: str, video: Path
    ) -> None:
        """Write the page, which plays `video`."""
        text = page(prediction, self._rules, folder, name, video)
        write_text(folder / "index.html", text)

    def _write_videos(self, prediction: Prediction, folder: Path, name: str) -> None:
        """Write a picture of each event, its clip, and the annotated file."""
        path, events, config = prediction.path, prediction.events, self._config
        write_key_frames(path, events, folder)
        for event in events if config.clips else ():
            assert event.end is not None
            start = max(event.start - config.before_seconds, 0.0)
            within = start, event.end + config.after_seconds
            write_video(path, folder / f"event-{event.id}.mp4", within, cut=True)
        if config.annotate:
            draw = annotation(prediction.timeline, events)
            target = folder / "annotated.mp4"
            write_video(path, target, self._between, False, draw)
            if path.suffix.lower() not in _PLAYED:
                self._write_page(prediction, folder, name, target)

    def finish(self) -> None:
        """Write the tables over all files that were added."""
        write_csv(self._folder / "events.csv", self._events, _EVENT_COLUMNS)
        write_csv(self._folder / "timeline.csv", self._timeline, _TIMELINE_COLUMNS)
        taxonomy = [
            {"nodeId": 0, "nodeName": "Root", "parentId": None, "parentName": None},
            {"nodeId": 1, "nodeName": _LABEL, "parentId": 0, "parentName": "Root"},
        ]
        values = {
            "version": "1",
            "taxonomy": taxonomy,
            "database": self._database,
            "classes": [_LABEL],
            "labels": self._labels,
        }
        write_json(self._folder / "events.json", values)
        write_json(self._folder / "videos.json", self._videos)

    def _key_of(self, name: str) -> str:
        """What a file is called among the outputs: its stem, with a number if that is taken."""
        stem = key = Path(name).stem
        while key in self._taken:
            self._taken[stem] += 1
            key = f"{stem}-{self._taken[stem]}"
        self._taken[key] = 1
        return key


@contextmanager
def outputs(
    config: OutputConfig,
    names: Sequence[str],
    rules: EventRules,
    between: Span = WHOLE,
) -> Iterator[Outputs | None]:
    """The outputs in --out, whose tables are written however the block ends; None without."""
    if config.out is None:
        yield None
        return
    written = Outputs(config.out, config, names, rules, between)
    try:
        yield written
    finally:
        written.finish()


def _remove_earlier(folder: Path, sources: set[Path]) -> None:
    """Remove what an earlier run wrote into a file's folder.

    It wrote the subtitles first: older files of such names are others'.
    """
    subtitles = folder / "events.vtt"
    if not subtitles.is_file():
        return
    began = subtitles.stat().st_mtime
    with explaining(folder):
        for path in folder.iterdir():
            if not (is_written(path) and path.is_file()) or path.resolve() in sources:
                continue
            if path.stat().st_mtime >= began:
                path.unlink()


def _activitynet(prediction: Prediction) -> dict[str, Any]:
    """The entry of a video in ActivityNet's `database`."""
    outcome: Outcome = prediction.outcome
    annotations = [
        {"segment": [row["start"], row["end"]], "label": _LABEL, "score": row["peak"]}
        for row in map(Event.to_dict, prediction.events)
    ]
    return {
        "duration": outcome.span,
        "resolution": f"{outcome.width}x{outcome.height}",
        "subset": "predicted",
        "annotations": annotations,
    }


def _fiftyone(events: Sequence[Event]) -> list[dict[str, Any]]:
    """A video's entry in `labels` of FiftyOne's temporal detections; a label is an index."""
    return [
        {
            "label": 0,
            "timestamps": [row["start"], row["end"]],
            "confidence": row["peak"],
        }
        for row in map(Event.to_dict, events)
    ]


def _path_from(folder: Path, video: Path) -> str:
    """Where a video is, seen from a folder."""
    return os.path.relpath(video.absolute(), folder.absolute())


def subtitles(events: Sequence[Event]) -> str:
    """Events as WebVTT, to be shown over the video."""
    cues = [
        f"{event.id}\n{_stamp(event.start)} --> {_stamp(event.end or event.start)}\n"
        f"{_LABEL} {event.peak:.2f}\n"
        for event in events
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _stamp(seconds: float) -> str:
    """A time as WebVTT has it: 00:01:02.345."""
    whole, thousandths = divmod(round(1000 * max(seconds, 0.0)), 1000)
    minutes, rest = divmod(whole, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}.{thousandths:03d}"


def page(
    prediction: Prediction, rules: EventRules, folder: Path, name: str, video: Path
) -> str:
    """A page with the video, its curve and its events; nothing else is fetched."""
    curve = [
        [round(seconds, 3), round(probability, 4)]
        for seconds, probability in zip(*prediction.timeline, strict=True)
    ]
    return _template().render(
        name=name,
        video=quote(_path_from(folder, video)),
        prediction=prediction,
        rules=rules,
        clock=_clock_with_tenths if prediction.outcome.span < 60 else clock,
        values={
            "curve": curve,
            "events": [[event.start, event.end] for event in prediction.events],
            "gaps": [[start, start + length] for start, length in prediction.gaps],
            "thresholds": [rules.threshold, rules.end_threshold],
            "end": max(prediction.outcome.span, curve[-1][0]),
        },
    )


def _clock_with_tenths(seconds: float) -> str:
    """Seconds as 0:01.5."""
    tenths = round(10 * seconds)
    return f"{clock(tenths / 10)}.{tenths % 10}"


@cache
def _template() -> "jinja2.Template":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vd.predict"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("recording.html.j2")
