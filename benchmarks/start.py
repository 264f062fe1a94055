"""Start of `vd predict`: a short clip, a missing file, against an earlier version of vd.

    python -m benchmarks.start --run RUN --clip CLIP --before CHECKOUT

`theirs` is the code in CHECKOUT. Both predict with one run, each in a process of its own, in
turn. `seconds` are by the clock, `cpu_seconds` of all processes; the latter change less on a
busy machine.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import tyro

_HERE = Path(__file__).parents[1]


class Taken(NamedTuple):
    """What one command took."""

    seconds: float
    cpu_seconds: float


def main(run: Path, clip: Path, before: Path, repeats: int = 5) -> None:
    """A JSON line for each command and kind of time."""
    for name, file in (("clip", clip), ("missing file", Path("missing.mp4"))):
        taken: dict[Path, list[Taken]] = {_HERE: [], before: []}
        for repeat in range(repeats + 1):
            for folder, measured in taken.items():
                one = predict(folder, run, file)
                measured += [one] if repeat else []  # the first fills caches
        for kind in Taken._fields:
            ours, theirs = (
                median(getattr(one, kind) for one in measured)
                for measured in taken.values()
            )
            line = {
                "benchmark": "start",
                "peer": f"before, {name}",
                "unit": kind,
                "ours": round(ours, 2),
                "theirs": round(theirs, 2),
                "ratio": round(theirs / ours, 2),
            }
            print(json.dumps(line), flush=True)


def predict(folder: Path, run: Path, file: Path) -> Taken:
    """Time of a `vd predict` by the code in a folder."""
    command = [sys.executable, "-m", "vd.cli", "predict", file, "--checkpoint-dir", run]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    before, began = _cpu_seconds(), time.perf_counter()
    subprocess.run(
        [str(word) for word in command],
        cwd=folder, env=environment, capture_output=True, check=False,
    )  # fmt: skip
    return Taken(time.perf_counter() - began, _cpu_seconds() - before)


def _cpu_seconds() -> float:
    """User and system time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    tyro.cli(main)
