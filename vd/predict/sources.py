"""What `vd predict` was given, as a list of files or of streams.

Nothing is opened but lists, so that a mistake is told before anything slow.
"""

import glob
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from vd.console import say
from vd.data.manifest import is_video, visible_files
from vd.errors import VdError
from vd.files import read_csv

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# of USER:PASSWORD@, where a port is no password; and in the query that some cameras take
_PASSWORD = re.compile(r"(?<=://)([^/?#@:\s]*):(?!\d+(?:[/?#]|$))\S*(?=@)")
_QUERY = re.compile(r"\b(pass\w*|pwd|token|key)=[^&\s]*", re.IGNORECASE)
_STREAMS = "rtsp", "rtsps", "rtmp", "rtmps", "udp", "tcp", "srt", "http", "https"
_SLIP = re.compile(rf"({'|'.join(_STREAMS)}):", re.IGNORECASE)  # lacks a slash
_CAMERA = re.compile(r"\d+")
_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)")
_WRITTEN = re.compile(  # names of files in --out
    r"event-\d+\.(jpg|mp4)|annotated\.mp4|index\.html|timeline\.(png|csv)"
    r"|events\.(vtt|csv|json)|videos\.json"
)
_REMEDY = (
    "name video files, folders, quoted patterns, a .csv or .txt list, or - for a list"
)


def find_files(
    sources: Sequence[str], listed: TextIO | None = None, out: Path | None = None
) -> list[str]:
    """The files that the sources name, in order, each as its source has it.

    A source is a file; a folder, searched for videos with all its folders; a pattern with
    `*`, `?`, `[…]` and `**`; a CSV with a column `path`; a .txt with a path a line; or `-`,
    such a list on `listed`, by default standard input (# begins a comment in both). Paths in
    a file are relative to its folder. Folders and patterns give no file that vd has written
    into the folder `out`. Of several files some may be missing: their predictions say so.
    Raises `VdError` when all are, for a source that gives no file, and for an address in a
    list.
    """
    files = [file for source in sources for file in _files_of(source, listed, out)]
    if not files:
        raise VdError(f"vd predict was given no file; {_REMEDY}.")
    if not any(map(os.path.lexists, files)):
        more = f", nor does any of {len(files) - 1} others" if len(files) > 1 else ""
        raise VdError(f"{files[0]} does not exist{more}; {_REMEDY}.")
    return files


def find_streams(sources: Sequence[str]) -> list[str]:
    """The addresses and numbers of cameras that the sources name; none where all are files.

    A source is an address, the number of a camera, or a .streams file with one of these a
    line (# begins a comment). Raises `VdError` for files among streams, for a scheme that
    is none of a stream, and for a .streams file that names none.
    """
    streams, files = list[str](), list[str]()
    for source in sources:
        if Path(source).suffix.lower() == ".streams" and not _ADDRESS.match(source):
            streams += _listed_streams(Path(source))
        elif _is_stream(source):
            streams.append(_stream(source))
        elif (slip := _SLIP.match(source)) and not Path(source).exists():
            raise _one_slash(slip[0])
        else:
            files.append(source)
    if streams and files:
        raise VdError(
            f"{files[0]} is a file and {mask_password(streams[0])} a stream, which does not "
            "end; predict files and streams by commands of their own."
        )
    return streams


def _one_slash(scheme: str) -> VdError:
    """The error for a source such as rtsp:/door; without it, for it may hold a password."""
    return VdError(
        f"A source begins with {scheme} but not with {scheme}//, as addresses of streams "
        "do; write both slashes, or name a file that exists."
    )


def _is_stream(source: str) -> bool:
    """Whether a source is an address or a camera; a file of that name comes first."""
    return bool(_ADDRESS.match(source)) or (
        bool(_CAMERA.fullmatch(source)) and not Path(source).exists()
    )


def _stream(source: str) -> str:
    """An address whose scheme is one of a stream's, or the number of a camera."""
    scheme, found, _ = source.partition("://")
    if found and scheme.lower() not in _STREAMS:
        raise VdError(
            f"{mask_password(source)} is no address of a stream; give one that begins with "
            f"{', '.join(_STREAMS)} and ://, or the path of a file."
        )
    return source


def _listed_streams(path: Path) -> list[str]:
    """The streams of a .streams file."""
    if not path.is_file():
        raise VdError(f"{path} does not exist; name a file with an address a line.")
    named = _uncommented(path.read_text(encoding="utf-8-sig").splitlines())
    for line in named:
        if not (_ADDRESS.match(line) or _CAMERA.fullmatch(line)):
            if slip := _SLIP.match(line):
                raise _one_slash(slip[0])
            raise VdError(
                f"{path} has the line {line!r}, which is neither an address nor the number of "
                "a camera; put files into a .txt list."
            )
    if not named:
        raise VdError(f"{path} names no stream; write an address into each line.")
    return [_stream(line) for line in named]


def mask_password(text: str) -> str:
    """Text in which passwords of addresses are replaced by three stars."""
    return _QUERY.sub(r"\1=***", _PASSWORD.sub(r"\1:***", text))


def parse_time(text: str, flag: str) -> float:
    """Seconds from 75.5, 1:15.5 or 0:01:15.5; raises `VdError`, with the flag, for else."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise VdError(f"{flag} {text!r} is no time; give seconds, MM:SS or HH:MM:SS.")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    if match[2] is not None and (seconds >= 60 or (match[1] and minutes >= 60)):
        raise VdError(f"{flag} {text!r} has 60 or more where at most 59 belong.")
    return 3600 * hours + 60 * minutes + seconds


def parse_between(
    start: str | None, end: str | None, duration: str | None
) -> tuple[float, float]:
    """The seconds between which to predict, from the flags; raises `VdError` for wrong ones."""
    if end is not None and duration is not None:
        raise VdError("--end-time and --duration both say where to stop; give one.")
    first = 0.0 if start is None else parse_time(start, "--start-time")
    last = float("inf")
    if end is not None:
        last = parse_time(end, "--end-time")
    if duration is not None:
        last = first + parse_time(duration, "--duration")
    if last <= first:
        raise VdError(
            f"nothing lies between --start-time ({first:g} s) and the end ({last:g} s); "
            "give a later end."
        )
    return first, last


def _files_of(source: str, listed: TextIO | None, out: Path | None) -> Iterable[str]:
    """The files of one source."""
    path = Path(source)
    if source == "-":
        return _lines(_uncommented(listed or sys.stdin), "standard input", Path())
    if path.is_dir():
        return _videos_below(path, out)
    if not path.exists() and glob.has_magic(source):
        return _matches(source, out)
    if path.suffix.lower() in (".csv", ".txt"):
        return _listed(path)
    return [source]


def is_written(path: Path) -> bool:
    """Whether a file in --out is vd's own, by its name."""
    return bool(_WRITTEN.fullmatch(path.name))


def _without_written(names: Iterable[str], out: Path | None) -> list[str]:
    """Names but those of files that an earlier run wrote into --out."""
    paths = {name: Path(name) for name in names}
    if out is None:
        return list(paths)
    folder = out.resolve()
    kept = [
        name
        for name, path in paths.items()
        if not (is_written(path) and path.resolve().is_relative_to(folder))
    ]
    if left_out := len(paths) - len(kept):
        say(
            f"{out}: {left_out} files there have names that vd gives to what it writes, and "
            "are left out; name one to predict it"
        )
    return kept


def _videos_below(folder: Path, out: Path | None) -> list[str]:
    """The files in a folder, and in the folders in it, that are videos by their names."""
    files = [*map(Path, _without_written(map(str, visible_files(folder)), out))]
    paths = sorted(path for path in files if is_video(path))
    if paths and len(paths) < len(files):
        say(f"{folder}: {len(files) - len(paths)} files are no videos by their names")
    if not paths:
        raise VdError(
            f"{folder} and the folders in it have no file with the name of a video; "
            f"{_REMEDY}."
        )
    return [str(path) for path in paths]


def _matches(pattern: str, out: Path | None) -> list[str]:
    """The files that a pattern matches; no hidden ones, which a dot in it names."""
    names = glob.iglob(pattern, recursive=True)
    files = (name for name in names if os.path.isfile(name))
    paths = sorted(_without_written(files, out))
    if not paths:
        raise VdError(f"{pattern} matches no file; {_REMEDY}.")
    return paths


def _listed(path: Path) -> list[str]:
    """The files in a CSV with a column `path`, or in a list of a path a line."""
    if not path.is_file():
        raise VdError(f"{path} does not exist; {_REMEDY}.")
    if path.suffix.lower() == ".txt":
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            return _lines(_uncommented(lines), str(path), path.parent)
    rows = read_csv(path)
    if not rows or "path" not in rows[0]:
        raise VdError(
            f"{path} has no column path, or no row below its first line; write path into "
            "its first line and a file into each other one."
        )
    return _lines((row["path"] or "" for row in rows), str(path), path.parent)


def _uncommented(lines: Iterable[str]) -> list[str]:
    """The lines of a list without the spaces around them; no empty ones and no comments."""
    stripped = map(str.strip, lines)
    return [line for line in stripped if line and not line.startswith("#")]


def _lines(lines: Iterable[str], name: str, folder: Path) -> list[str]:
    """The paths of a list; relative ones are relative to the folder."""
    files = [_in_folder(line.strip("\r\n"), folder) for line in lines if line.strip()]
    if not files:
        raise VdError(f"{name} lists no file; write a path into each line.")
    return files


def _in_folder(line: str, folder: Path) -> str:
    """A listed path as the command would have to name it."""
    if _ADDRESS.match(line):
        raise VdError(
            f"{mask_password(line)} is a stream in a list of files; put streams into a "
            ".streams file."
        )
    return line if folder == Path() else str(folder / line)
