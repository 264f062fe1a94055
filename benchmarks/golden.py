"""Whether two revisions give the same numbers: one small training of each, compared.

    python -m benchmarks.golden BEFORE AFTER [--tolerance 1e-5]

BEFORE and AFTER are git revisions, or `.` for the working tree as it is. Each runs on this
machine's CPU, with this Python environment and a cache of its own: `vd train` (3 epochs,
preset best, two devices), `vd evaluate`, `vd predict` and `vd crossval --folds 2` on the
same 32 rendered clips, two files cut short, and a tiny ONNX backbone.

Compared are metrics.jsonl without times, predictions, the point figures of evaluations
and cross-validation, and what `vd predict` prints: equal to the bit, or numbers within
`--tolerance`. A line each; leaves with 1 when anything differs. New keys are no difference;
keys that a change removes are listed in `REMOVED`. Cost: two minutes of processor time.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import tyro

from benchmarks.long_video import write_stand_in

REMOVED = (  # keys, a line each with the change that removed it
    "ece_by_chance",  # it was in no decision; docs/data_format.md says it in words
    "resamples",  # a constant
    "resampled_groups",  # nothing showed it
    "design_effect",  # nothing showed it
    "clips_needed_in_such_groups",  # nothing showed it
    "undefined",  # of a cross-validation's spreads: its warnings name these metrics
)
TIMES = ("seconds", "videos_per_second", "input_wait_fraction")  # of metrics.jsonl
WORDS = ("warnings", "threshold_source")  # sentences
NOT_COMPARED = (*REMOVED, *TIMES, *WORDS)  # nor intervals, *ci95: no point figures
CLIPS = {"train": 8, "val": 4, "test": 4}  # of each class
FORMATS = ((64, 48, 10), (96, 64, 25), (80, 60, 15), (64, 64, 12))  # the last: frames/s
SMALL = (
    "--epochs 3 --batch-size 8 --warmup-epochs 1 --projection-size 16 --hidden-size 8 "
    "--no-mixed-precision --devices 2"
).split()


def main(before: str, after: str, /, tolerance: float = 0.0) -> None:
    """Run both revisions and print a line for each thing that is compared."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        clips = render_clips(folder / "clips")
        backbone = write_stand_in(folder / "tiny.onnx", size=32, dim=8)
        results = []
        for number, revision in enumerate((before, after)):
            with checkout(revision, folder / f"revision_{number}") as code:
                results.append(run(code, folder / f"{number}", clips, backbone))
    differences = 0
    for what, values in results[0].items():
        difference = first_difference(values, results[1].get(what, {}), tolerance)
        print(f"{what}: {difference or f'equal ({len(values)} values)'}")
        differences += difference is not None
    sys.exit(differences > 0)


@contextmanager
def checkout(revision: str, folder: Path) -> Iterator[Path]:
    """A temporary worktree of a revision; for `.` the working tree itself."""
    root = Path(__file__).resolve().parents[1]
    if revision == ".":
        yield root
        return
    git = ["git", "-C", str(root), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", folder, revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", folder], check=True)


def run(code: Path, folder: Path, clips: Path, backbone: Path) -> dict[str, dict]:
    """All commands with the code of one revision; the values that each result holds."""
    folder.mkdir()  # the commands run in it: `python -m` imports from there first
    environment = os.environ | {"PYTHONPATH": str(code), "JAX_PLATFORMS": "cpu"}

    def python(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{arguments} with the code of {code} failed:\n{done.stderr}")
        return done.stdout

    imported = Path(python("-c", "import vd; print(vd.__file__)").strip())
    if not imported.is_relative_to(code):
        sys.exit(f"vd is imported from {imported} in place of {code}.")
    train = (
        "--dataset-path", clips, "--cache-dir", "cache", "--backbone", backbone,
        "--feature-preset", "best", *SMALL,
    )  # fmt: skip
    python("-m", "vd.cli", "train", *train, "--checkpoint-dir", "run")
    results = {f"train: {k}": v for k, v in read_run(folder / "run").items()}
    for arguments in (["val"], ["test"], ["test", "--tta"]):
        python("-m", "vd.cli", "evaluate", "--checkpoint-dir", "run", "--split", *arguments)  # fmt: skip
    results |= {f"evaluate: {k}": v for k, v in read_run(folder / "run").items()}
    files = sorted(clips.glob("test/*/*.mp4"))
    printed = python("-m", "vd.cli", "predict", "--checkpoint-dir", "run", *files)
    results["predict"] = flat([json.loads(line) for line in printed.splitlines()])
    python(
        "-m", "vd.cli", "crossval", *train, "--folds", 2, "--checkpoint-dir", "folds"
    )
    pooled = json.loads((folder / "folds" / "crossval.json").read_text())
    results["crossval: crossval.json"] = flat(pooled)
    return results


def read_run(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The values in the files of a run folder, by file name and key."""
    rows = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    values = {"metrics.jsonl": flat(rows)}
    for path in sorted(run_dir.glob("predictions_*.csv")):
        with path.open(newline="") as file:
            values[path.name] = flat(list(csv.DictReader(file)))
    for path in sorted(run_dir.glob("evaluation_*.json")):
        values[path.name] = flat(json.loads(path.read_text()))
    return values


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested values by dotted keys, without those that are not compared."""
    if isinstance(value, list):
        value = {"length": len(value)} | {str(i): v for i, v in enumerate(value)}
    if not isinstance(value, dict):
        return {key: value}
    values: dict[str, Any] = {}
    for name, inner in value.items():
        if name not in NOT_COMPARED and not name.endswith("ci95"):
            values |= flat(inner, f"{key}.{name}" if key else name)
    return values


def first_difference(
    before: dict[str, Any], after: dict[str, Any], tolerance: float
) -> str | None:
    """The first key whose values differ, with both; None when there is none."""
    for key, old in before.items():
        if key not in after:
            return f"{key} is {old!r} before and missing after"
        if old != after[key] and not is_close(old, after[key], tolerance):
            return f"{key} is {old!r} before and {after[key]!r} after"
    return None


def is_close(old: Any, new: Any, tolerance: float) -> bool:
    """Whether both are numbers, or a CSV's text of numbers, within the tolerance."""
    try:
        return abs(float(old) - float(new)) <= tolerance
    except (TypeError, ValueError):
        return False


def render_clips(root: Path) -> Path:
    """Clips at `root/<split>/<class>/clip_N.mp4`, and a file cut short in each train class."""
    rng = np.random.default_rng(0)
    for split, count in CLIPS.items():
        for name in ("nonviolent", "violent"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                path = folder / f"clip_{n}.mp4"
                seconds = 5.0 if n == 1 else 1.5  # 5 s are more than one window
                render_clip(path, rng, FORMATS[n % 4], seconds, name == "violent")
            if split == "train":
                (folder / "cut.mp4").write_bytes(path.read_bytes()[:1000])
    return root


def render_clip(
    path: Path,
    rng: np.random.Generator,
    form: tuple[int, int, int],
    seconds: float,
    violent: bool,
) -> None:
    """Two squares on a ground of coloured tiles; violent ones jump, the others drift."""
    width, height, rate = form
    frames = round(seconds * rate)
    tiles = rng.integers(0, 60, (4, 4, 3), np.uint8)
    ground = np.kron(tiles, np.ones((height // 4, width // 4, 1), np.uint8))
    limits = np.array([height - 16, width - 16])
    place_Qx2 = rng.uniform(0, 1, (2, 2)) * limits
    step_Qx2 = rng.uniform(-10, 10, (2, 2)) / rate  # pixels a frame
    colours = rng.integers(150, 255, (2, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            image = ground.copy()
            if violent and rng.random() < 0.4:
                place_Qx2 = rng.uniform(0, 1, (2, 2)) * limits
            place_Qx2 = np.clip(place_Qx2 + step_Qx2, 0, limits)
            for (y, x), colour in zip(place_Qx2.astype(int), colours, strict=True):
                image[y : y + 16, x : x + 16] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    tyro.cli(main)
