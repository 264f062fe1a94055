"""Whether a file is a video, and its outcome: used, partial or quarantined, and why."""

import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import av

Ending = Literal["used", "partial", "quarantined"]
Reason = Literal[
    "", "empty", "not-a-video", "no-video-stream", "truncated", "corrupt-frames", "timeout",
    "too-short", "unreadable", "not-a-regular-file", "too-large", "missing", "changed",
]  # fmt: skip

_CONTAINERS = re.compile(  # the first bytes of files that FFmpeg should open
    rb".{4}(ftyp|moov|mdat|free|wide|skip)|RIFF|\x1aE\xdf\xa3|FLV|GIF8|OggS|\x00\x00\x01[\xba\xb3]"
    rb"|\x30\x26\xb2\x75|\x06\x0e\x2b\x34|G.{187}G.{187}G",
    re.DOTALL,
)
_OF_A_PATH = frozenset(
    ("empty", "unreadable", "not-a-regular-file", "missing", "changed")
)
_NO_VIDEOS = "_pipe", "image2", "tty", "concat"  # formats of pictures and texts
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d\.\d+)")
_TOLERATED_FRAMES = 2  # may be missing in a used video, as headers are inexact
_TOLERATED_SHARE = 0.05  # or this share of its frames
_LEAST_SHARE = 0.5  # of the frames must be decoded, otherwise none is used


@dataclass(frozen=True)
class Outcome:
    """The outcome of one file; `frames` counts its decodable frames."""

    outcome: Ending
    reason: Reason = ""
    frames: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    duration: float = 0.0  # seconds, by its header
    codec: str = ""
    brightness: float | None = None  # mean grey of the first frame, 0 to 255

    @property
    def of_content(self) -> bool:
        """Whether it holds for the content, and not only for a path at one moment."""
        return self.reason not in _OF_A_PATH


@dataclass(frozen=True)
class Tally:
    """Counts of one decoded stretch of a file."""

    header: Outcome  # `frames` is 0 if unknown; has a `reason` if the file is refused
    good: int = 0  # frames decoded
    faults: int = 0  # frames that are damaged or undecodable, and holes in time
    last: float = 0.0  # seconds from the file's first frame to the stretch's last
    kept: int = 0  # frames that were kept, each with a later one
    end: float = (
        0.0  # seconds to the end of all streams, if the header has no own length
    )
    tail: int = 0  # how many of the faults end the file


def check_file(path: Path) -> Reason:
    """Why a path cannot be a video; does not open it, as a named pipe would hang."""
    try:
        status = os.stat(path)
        mode = os.R_OK | os.X_OK if stat.S_ISDIR(status.st_mode) else os.R_OK
        readable = os.access(path, mode, effective_ids=True)
    except PermissionError:
        return "unreadable"
    except (OSError, ValueError):  # missing, a loop of links, no possible name
        return "missing"
    if not readable:
        return "unreadable"
    if not stat.S_ISREG(status.st_mode):
        return "not-a-regular-file"
    return "" if status.st_size else "empty"


def why_not_opened(path: Path, error: Exception | None = None) -> Reason:
    """Why FFmpeg cannot open a regular file, or finds no stream in it."""
    if isinstance(error, PermissionError):
        return "unreadable"
    try:
        with open(path, "rb") as handle:
            return "truncated" if _CONTAINERS.match(handle.read(377)) else "not-a-video"
    except OSError:  # a disk error, or the file is gone
        return "unreadable"


def read_header(container: Any, max_pixels: int) -> tuple[Any, Outcome]:
    """The video stream of an open file and its header, quarantined so far.

    `frames` is 0 if the header does not give it; a `reason` says why there is nothing to
    decode.
    """
    streams = container.streams
    if not len(streams):
        reason = why_not_opened(Path(container.name))
        return None, Outcome("quarantined", reason)
    known = any((streams.video, streams.audio))
    if not known or container.format.name.endswith(_NO_VIDEOS):
        return None, Outcome("quarantined", "not-a-video")
    for stream in streams.video:
        context = stream.codec_context
        picture = stream.disposition & av.stream.Disposition.attached_pic
        if context is not None and not picture:  # None: an unknown codec
            break
    else:
        return None, Outcome("quarantined", "no-video-stream")
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    fps = rate if 0 < rate <= 1000 else 25.0
    duration = float((stream.duration or 0) * stream.time_base)
    duration = max(duration or _duration_of_all(container, stream), 0.0)
    frames = max(stream.frames, 0)
    if "mp4" in container.format.name:
        frames = min(frames, round(duration * fps))  # an edit list hides some
    else:
        duration = max(
            duration, frames / fps
        )  # FFmpeg shortens the duration of a cut AVI
        index = (
            stream.index_entries
        )  # without the frames that the writer of an AVI skipped
        if "avi" in container.format.name and len(index):
            whole = index[-1].timestamp >= (1 - _TOLERATED_SHARE) * frames
            frames = len(index) if whole else frames
    width, height = context.width, context.height
    reason = "too-large" if width * height > max_pixels else ""
    return stream, Outcome(
        "quarantined", reason, frames, width, height, fps, duration, context.name
    )


def _duration_of_all(container: Any, stream: Any) -> float:
    """Seconds from the first frame to the end, if only the whole file's end is known.

    Matroska and FLV give the end of the longest stream, and the first frame need not be at
    0. A Matroska tag may give the end of the stream itself.
    """
    end = (container.duration or 0) / av.time_base
    if tag := _CLOCK.fullmatch(stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = map(float, tag.groups())
        end = min(end, 3600 * hours + 60 * minutes + seconds)
    start = float((stream.start_time or 0) * stream.time_base)
    return round(end - start, 6) if 0 < start < end else end


def outcome_of(tallies: Sequence[Tally]) -> Outcome:
    """The outcome of a file from the tallies of all its stretches, the first one first.

    Used: no fault, and at most 2 frames or 5 % are missing. Otherwise partial if at least
    half of the frames were decoded, else quarantined; the reason is truncated if the end is
    missing, else corrupt-frames. If the header gives only the end of the longest stream, a
    file is truncated only if every stream ends early: sound may outlast the picture.
    """
    header = tallies[0].header
    good = sum(tally.good for tally in tallies)
    known = replace(header, frames=good)
    for tally in tallies:
        if tally.header.reason:
            return replace(known, reason=tally.header.reason)
    faults = sum(tally.faults for tally in tallies)
    reached = max(max(tally.last + 1 / header.fps, tally.end) for tally in tallies)
    unreached = round((header.duration - reached) * header.fps)  # frames
    if good <= header.frames:
        expected, missing = header.frames, header.frames - good
    else:  # no count, or only that of the first fragment: by time
        expected = round(header.duration * header.fps)
        missing = unreached + faults
    tolerated = max(_TOLERATED_FRAMES, _TOLERATED_SHARE * expected)
    kept = any(tally.kept for tally in tallies)
    if missing <= tolerated and not faults:
        if not kept:
            return replace(known, reason="too-short")
        return replace(known, outcome="used")
    cut = unreached > tolerated or faults == tallies[-1].tail > 0
    reason: Reason = "truncated" if cut else "corrupt-frames"
    enough = kept and missing <= (1 - _LEAST_SHARE) * expected
    return replace(known, outcome="partial" if enough else "quarantined", reason=reason)


def outcome_from_row(row: Mapping[str, str]) -> Outcome:
    """An outcome from its CSV form; raises `ValueError` or `KeyError` for anything else."""
    if row["outcome"] not in get_args(Ending) or row["reason"] not in get_args(Reason):
        raise ValueError(f"{row['outcome']!r}, {row['reason']!r} is not an outcome")
    counts = {name: int(row[name]) for name in ("frames", "width", "height")}
    numbers = {name: float(row[name]) for name in ("fps", "duration")}
    if row.get("brightness"):  # older rows have none
        numbers["brightness"] = float(row["brightness"])
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError("fps, duration or brightness is not a finite number")
    values = {"codec": row["codec"], **counts, **numbers}
    return Outcome(row["outcome"], row["reason"], **values)  # type: ignore[arg-type]
