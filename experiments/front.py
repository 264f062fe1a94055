"""Study: accuracy of the frozen features against their cost; where the presets lie.

    python experiments/front.py --dataset-path scfd/manifest.csv --cache-dir CACHE
    python experiments/front.py --dataset-path scfd/manifest.csv --table
    python experiments/front.py --dataset-path scfd/manifest.csv --speed --plot docs/front.png

A point is what is computed of a video: streams, side of the images, 8 bits or floats, views.
Its accuracy is that of a linear map of mean and change, as the linear path has it, on the
inner folds of heads.py: no outer fold is tested, so that presets may be chosen here. Each inner fold is a line of front.jsonl with its
logits; a rerun skips it. `--speed` times the extraction of some clips into an empty cache at
each point in turns, on an idle machine, and adds a line with all times.

Source:   RGB at a slower rate, 160 pixels and 8 bits were to make the features cheaper
Cost:     240 clips: 9,800 images of 160 and 224 pixels in either arithmetic, some twice;
          with --speed, every point --repeats times on --clips clips
Promised: 2.5 × the videos/s of the default preset
Measured: front.jsonl, and docs/performance.md
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro
from front_points import ALL, POINTS
from front_speed import measure_speed
from heads import inner_parts, load, name_of, start_lines
from heads_lines import Line, append, key_of, read_results
from jaxtyping import Float32
from probe import mean_and_deviation, out_of_fold

from vd.cli import run_command
from vd.console import say
from vd.data.manifest import Video
from vd.errors import VdError
from vd.models.pooling import mean_and_change_of

if TYPE_CHECKING:  # it imports JAX, which a decoding worker need not
    from vd.training.feature_set import FeatureSet

LINES = Path(__file__).with_suffix(".jsonl")


def main(
    dataset_path: Path,
    cache_dir: Path = Path("cache"),
    table: bool = False,
    speed: bool = False,
    plot: Path | None = None,
    clips: int = 60,
    repeats: int = 3,
    seed: int = 0,
    lines: Path = LINES,
) -> int:
    """Run what is missing, then print the table; `table` runs nothing.

    `speed` times `clips` clips that `seed` draws and runs nothing else; `plot` is the file
    of a picture of accuracy against videos/s, from the last times.
    """
    from front_table import front_figure, read_rates, rows, table_of

    from vd.plots import save

    dataset = dataset_path.parent.name if dataset_path.suffix else dataset_path.name
    if speed:
        timed = {point.name: point.backbone for point in POINTS}
        measure_speed(lines, timed, dataset, dataset_path, clips, repeats, seed)
    elif not table and plot is None:
        run(lines, dataset, dataset_path, cache_dir)
    results = read_results(lines, dataset)
    if results is None:
        raise VdError(
            f"{lines} has no line of {dataset}; run the study without --table."
        )
    points = list(rows(results, read_rates(lines, dataset)))
    print(table_of(points))
    if plot is not None:
        if not all(row.rates for row in points):
            raise VdError(f"--plot: {lines} has no videos/s; run with --speed first.")
        rates = np.array([row.rates.extraction for row in points if row.rates])
        auc = np.array([row.auc for row in points])
        save(front_figure([row.point for row in points], rates, auc), plot)
    return 0


def run(lines: Path, dataset: str, dataset_path: Path, cache_dir: Path) -> None:
    """The probe on every inner fold that has no line; one extraction for all streams."""
    from vd.features.seen import contents_fingerprint

    for config in dict.fromkeys(point.config for point in POINTS):
        videos, data = load(dataset_path, cache_dir, config)
        start_lines(lines, dataset, videos, contents_fingerprint(videos))
        every = {change: statistics(data, change) for change in (False, True)}
        for point in (point for point in POINTS if point.config == config):
            chosen = [ALL.index(stream) for stream in point.streams]
            x_VxNx2xSxD = every[point.change][:, :, :, chosen]
            images = data.frames_N.mean() * len(point.streams) * data.views
            facts: Line = {
                "dataset": dataset, "setting": point.name, "seed": 0,
                "settings": point._asdict(), "features": data.store.fingerprint,
                "images": round(float(images), 2),
            }  # fmt: skip
            x_VxNxP = x_VxNx2xSxD.reshape(data.views, len(videos), -1)
            run_point(lines, facts, videos, x_VxNxP)
            say(f"{point.name} is done")


def statistics(data: "FeatureSet", change: bool) -> Float32[np.ndarray, "V N 2 S D"]:
    """Mean and change, or deviation, over each clip's frames, stream by stream."""
    of_clip = mean_and_change_of if change else mean_and_deviation
    values = [
        [of_clip(data.read(n, view)) for n in range(len(data))]
        for view in range(data.views)
    ]
    return np.array(values).reshape(data.views, len(data), 2, data.store.streams, -1)


def run_point(
    lines: Path, facts: Line, videos: Sequence[Video],
    x_VxNxP: Float32[np.ndarray, "V N P"],
) -> None:  # fmt: skip
    """A line for each inner fold, unless it is there; logits are means over the views.

    Raises `VdError` when a line of the point was made from other features.
    """
    results = read_results(lines, facts["dataset"])
    assert results is not None
    place = {video.id: n for n, video in enumerate(videos)}
    for outer, inner in groupby(inner_parts(videos), lambda part: part.outer):
        parts = list(inner)
        keys = [{"outer": outer, "inner": part.inner} for part in parts]
        known = [results.lines.get(key_of(facts | key)) for key in keys]
        if any(line and line["features"] != facts["features"] for line in known):
            raise VdError(
                f"{lines} has lines of {facts['setting']} from other features; delete them, "
                "and they are made again."
            )
        if all(known):
            continue
        rows_I = [[place[video.id] for video in part.test] for part in parts]
        rows = np.concatenate(rows_I)
        fold_N = np.repeat(range(len(parts)), [len(one) for one in rows_I])
        labels_N = np.array([videos[row].label for row in rows])
        logits_N = out_of_fold(x_VxNxP[:, rows], labels_N, fold_N).mean(axis=0)
        for key, part, fold in zip(keys, parts, range(len(parts)), strict=True):
            logits = [round(float(logit), 5) for logit in logits_N[fold_N == fold]]
            clips = [name_of(video) for video in part.test]
            append(lines, {**facts, **key, "clips": clips, "logits": logits})


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
