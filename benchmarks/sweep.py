"""Ten short runs in one process against ten processes one after the other.

    python -m benchmarks.sweep --folder SCRATCH

Rendered clips, a backbone of near no cost, features extracted beforehand, float32, ten
seeds. `ours` is `vd sweep`, `theirs` ten times `vd train`, start-up and evaluation included
in both; compiled programs are kept from a run before.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import tyro

from benchmarks.long_video import write_stand_in
from benchmarks.scratch import scratch
from experiments.rendering.clips import render_dataset


def main(folder: Path, members: int = 10, epochs: int = 5, clips: int = 192) -> None:
    """A JSON line; what is written into `folder` is removed at the end."""
    with scratch(folder):
        parts = {"train": clips, "val": clips // 4, "test": clips // 4}
        data = render_dataset(folder / "clips", clips=parts, seed=0)
        common = [
            "--dataset-path", data, "--cache-dir", folder / "cache", "--backbone",
            write_stand_in(folder / "wide.onnx"), "--epochs", epochs, "--warmup-epochs", 1,
            "--no-mixed-precision",
        ]  # fmt: skip
        run("extract", *common[:6])
        times = {}
        for kind in ("first", "measured"):  # the first compiles
            seeds = range(members if kind == "measured" else 1)
            began = time.perf_counter()
            for seed in seeds:
                run("train", *common, "--seed", seed, "--checkpoint-dir", folder / kind / str(seed))  # fmt: skip
            times["theirs"] = time.perf_counter() - began
            began = time.perf_counter()
            run("sweep", *common, "--set", f"seed={','.join(map(str, range(members)))}", "--checkpoint-dir", folder / kind / "sweep")  # fmt: skip
            times["ours"] = time.perf_counter() - began
        line = {
            "benchmark": "sweep",
            "peer": "processes",
            "unit": "s",
            "ours": round(times["ours"], 1),
            "theirs": round(times["theirs"], 1),
            "ratio": round(times["theirs"] / times["ours"], 3),
            "members": members,
        }
        print(json.dumps(line), flush=True)


def run(*arguments: object) -> None:
    """A command of vd, in silence."""
    command = [sys.executable, "-m", "vd.cli", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    tyro.cli(main)
