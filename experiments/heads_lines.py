"""The lines of heads.jsonl: one for the data set, then one for each finished training.

And what a training can be: its settings stand in its line.
"""

import fcntl
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from vd.errors import VdError

Line = dict[str, Any]
_KEY = "setting", "outer", "inner", "seed"


@dataclass(frozen=True)
class Setting:
    """A head and how it is trained; with `C` the probe, which takes `components` alone."""

    C: float | None = None
    linear: bool = False
    change: bool = False
    """Probe and linear path read mean and change over time, not mean and deviation."""
    recurrent: bool = True
    standardised: bool = True
    correction: bool = False
    input_dropout: float = 0.0
    components: int = 0
    clip_frames: int = 20
    """Frames of a clip; most of SCFD have 15 to 17, and padding costs time."""
    epochs: int = 40
    learning_rate: float = 0.0005
    detector_rate: float = 1.0
    """Factor of the detector's learning rate beside a linear path."""
    detector_decay: float = 0.0
    """Decoupled weight decay of the detector's matrices beside a linear path."""
    temporal_jitter: float = 0.1
    frame_dropping_rate: float = 0.0
    mixup_alpha: float = 0.0
    average_decay: float = 0.0
    """Decay of a step of the average of weights that is tested (0: the last weights)."""

    def changed(self, **values: Any) -> "Setting":
        """The same but for these values."""
        return replace(self, **values)


class Clip(NamedTuple):
    """A clip of the study: a number for its group, and the outer fold that tests it."""

    label: int
    group: int
    outer: int


class Results(NamedTuple):
    """Everything that is finished on one data set."""

    features: str  # fingerprint
    clips: dict[str, Clip]  # by the beginning of the content hash
    lines: dict[tuple[Any, ...], Line]  # by setting, outer and inner fold, seed


def key_of(line: Line) -> tuple[Any, ...]:
    """Setting, outer fold, inner fold (None: the outer one is tested), seed."""
    return tuple(line[name] for name in _KEY)


def read_results(path: Path, dataset: str) -> Results | None:
    """The results on one data set, None without any; a cut last line is left out.

    Raises `VdError` for a line that is damaged or repeats another.
    """
    if not path.exists():
        return None
    content = path.read_bytes()
    result: Results | None = None
    for number, text in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            line = json.loads(text)
            if line["dataset"] != dataset or "seconds" in line:
                continue  # or times, which front.py reads
            if result is None:
                clips = {name: Clip(*values) for name, values in line["clips"].items()}
                result = Results(line["features"], clips, {})
                continue
            if key_of(line) in result.lines:
                raise ValueError("it repeats a line above")
            if len(line["clips"]) != len(line["logits"]):
                raise ValueError("its clips and logits differ in number")
            if set(line["clips"]) - set(result.clips):
                raise ValueError("it tested a clip that the data set does not have")
            _ = dict(line["settings"]), [float(x) for x in line["logits"]]
            result.lines[key_of(line)] = line
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise VdError(
                f"{path}, line {number} is damaged ({error!r}); delete that line, and its "
                "training is run again."
            ) from error
    return result


def append(path: Path, line: Line) -> None:
    """Add a line unless its like is there; a last line that a kill cut is removed first.

    The file is locked meanwhile, so that several processes may share the work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        content = handle.read()
        handle.truncate(content.rfind(b"\n") + 1)
        there = read_results(path, line["dataset"])
        known = there is not None and (
            "setting" not in line or key_of(line) in there.lines
        )
        if not known:
            handle.write(json.dumps(line).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
