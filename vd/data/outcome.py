"""Whether a file is a video, and its outcome: used, partial or quarantined, and why."""

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import av

Ending = Literal["used", "partial", "quarantined"]
Reason = Literal[
    "", "empty", "not-a-video", "no-video-stream", "truncated", "corrupt-frames", "timeout",
    "too-short", "unreadable", "not-a-regular-file", "too-large", "missing", "changed",
    "encrypted", "starts-after-end",
]  # fmt: skip

_CONTAINERS = re.compile(  # the first bytes of files that FFmpeg should open
    rb".{4}(ftyp|moov|mdat|free|wide|skip)|RIFF|\x1aE\xdf\xa3|FLV|GIF8|OggS|\x00\x00\x01[\xba\xb3]"
    rb"|\x30\x26\xb2\x75|\x06\x0e\x2b\x34|G.{187}G.{187}G",
    re.DOTALL,
)
_OF_A_PATH = "empty", "unreadable", "not-a-regular-file", "missing", "changed"
_NO_VIDEOS = "_pipe", "image2", "tty", "concat"  # formats of pictures and texts
PICTURE = "jpeg_pipe"  # the format of a JPEG picture, and of raw Motion JPEG
_PICTURES = (
    av.stream.Disposition.attached_pic
    | av.stream.Disposition.still_image
    | av.stream.Disposition.timed_thumbnails
)
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
    duration: float = 0.0  # seconds without the gaps; of a header what it claims
    codec: str = ""
    brightness: float | None = None  # mean grey of the first frame, 0 to 255
    span: float = 0.0  # seconds from the first frame to the end, gaps included
    gaps: tuple[tuple[float, float], ...] = ()  # start and length in seconds
    clock: Literal["", "stamps", "rate"] = ""  # rate: no frame has a time stamp

    @property
    def of_content(self) -> bool:
        """Whether it holds for the content, and not only for a path at one moment."""
        return self.reason not in _OF_A_PATH


@dataclass(frozen=True)
class Counts:
    """What the decoding of a stream came to."""

    good: int = 0  # frames decoded
    kept: int = 0  # of these, each with a later one
    packets: int = 0  # read
    faults: int = 0  # packets and frames that are damaged
    tail: int = 0  # how many of the faults end the file
    lost: int = 0  # frames that the faults cost
    reached: float = 0.0  # seconds from the first frame to the end of what was read


def check_file(path: Path) -> Reason:
    """Why a path cannot be a video; does not open it, as a named pipe would hang."""
    try:
        status = os.stat(path)
    except PermissionError:
        return "unreadable"
    except (OSError, ValueError):  # missing, a loop of links, no possible name
        return "missing"
    if not stat.S_ISREG(status.st_mode):
        return "not-a-regular-file"
    if not os.access(path, os.R_OK, effective_ids=True):
        return "unreadable"
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


def select_stream(container: Any, max_pixels: int) -> tuple[Any, Outcome]:
    """The video stream of an open file and its header, quarantined so far.

    `frames` is 0 if the header does not give it; a `reason` says why there is nothing to
    decode.
    """
    streams = container.streams
    if not len(streams):
        reason = why_not_opened(Path(container.name))
        return None, Outcome("quarantined", reason)
    known = any((streams.video, streams.audio))
    name = container.format.name
    if not known or (name.endswith(_NO_VIDEOS) and name != PICTURE):
        return None, Outcome("quarantined", "not-a-video")
    best = streams.best("video")  # a cover of one frame can be that
    for stream in sorted(streams.video, key=lambda s: (s.frames == 1, s is not best)):
        context = stream.codec_context  # None: an unknown codec
        if context is not None and not stream.disposition & _PICTURES:
            break
    else:
        return None, Outcome("quarantined", "no-video-stream")
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    fps = rate if 0 < rate <= 1000 else 25.0
    duration = float((stream.duration or 0) * stream.time_base)
    duration = max(duration or _duration_of_all(container, stream), 0.0)
    frames = 0 if name == "ivf" else max(stream.frames, 0)  # which can be a time
    index = stream.index_entries
    if "mp4" in name:
        frames = min(frames, len(index) or frames)  # an edit list hides some
    else:
        # FFmpeg shortens the duration of a cut AVI
        duration = max(duration, frames / fps)
        # the index is without the frames that the writer of an AVI skipped
        if "avi" in name and len(index):
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


def expected_frames(header: Outcome) -> int:
    """How many frames a file should give by its header; 0 if it does not say."""
    return header.frames or round(header.duration * header.fps)


def outcome_of(header: Outcome, counts: Counts) -> Outcome:
    """The outcome of a file from its header and what was decoded.

    Used: no fault, and at most 2 frames or 5 % are missing. Otherwise partial if at least
    half of the frames were decoded, else quarantined; the reason is truncated if the end is
    missing, else corrupt-frames. If the header gives only the end of the longest stream, a
    file is truncated only if every stream ends early: sound may outlast the picture.
    """
    known = replace(header, frames=counts.good)
    unreached = round((header.duration - counts.reached) * header.fps)  # frames
    if counts.packets <= header.frames:
        expected, missing = header.frames, header.frames - counts.packets
    else:  # no count, or only that of the first fragment: by time
        expected, missing = round(header.duration * header.fps), unreached
    missing += counts.lost
    tolerated = max(_TOLERATED_FRAMES, _TOLERATED_SHARE * expected)
    damaged = counts.faults or (counts.packets and not counts.good)
    if missing <= tolerated and not damaged:
        if not counts.kept:
            return replace(known, reason="too-short")
        return replace(known, outcome="used")
    cut = unreached > tolerated or counts.faults == counts.tail > 0
    reason: Reason = "truncated" if cut else "corrupt-frames"
    enough = counts.kept and missing <= (1 - _LEAST_SHARE) * expected
    return replace(known, outcome="partial" if enough else "quarantined", reason=reason)


def outcome_row(outcome: Outcome) -> dict[str, Any]:
    """An outcome by column, for CSV and the catalog: `gaps` as JSON [[start, length], …]."""
    return {**vars(outcome), "gaps": json.dumps(outcome.gaps) if outcome.gaps else ""}


def outcome_from_row(row: Mapping[str, Any]) -> Outcome:
    """An outcome from its row; raises an error where a value is missing or no number."""
    brightness, gaps = row["brightness"], json.loads(row["gaps"] or "[]")
    return Outcome(
        outcome=row["outcome"],
        reason=row["reason"],
        frames=int(row["frames"]),
        width=int(row["width"]),
        height=int(row["height"]),
        fps=float(row["fps"]),
        duration=float(row["duration"]),
        codec=row["codec"],
        brightness=None if brightness in (None, "") else float(brightness),
        span=float(row["span"]),
        gaps=tuple((start, length) for start, length in gaps),
        clock=row["clock"],
    )
