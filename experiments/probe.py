"""Linear probes of the features: their figures on folds, and on another data set.

    python experiments/probe.py --dataset-path scfd/manifest.csv --cache-dir CACHE
    python experiments/probe.py --dataset-path scfd/manifest.csv --cache-dir CACHE --random
    python experiments/probe.py --dataset-path scfd/manifest.csv --cache-dir CACHE \
        --on hockey/manifest.csv

Logistic regression on mean and change of the features over a clip's frames, as it stands
beside every run. Five stratified folds that each split seed draws, groups whole or with
`--random` cut; temperature and threshold come from each part's own inner folds.
`--on` fits on all clips of one data set and tests on those of another.

Source:   a head that is no better than a linear map is not worth its training
Cost:     seconds, once the features are there
Promised: nothing
Measured: docs/results.md, "Linear probes"
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float, Int

from vd.cli import run_command
from vd.data.manifest import Video
from vd.data.splits import fold_splits, folds
from vd.metrics.binary import shown

if TYPE_CHECKING:  # they import JAX, which a decoding worker need not
    from vd.evaluation.predictions import Member
    from vd.training.feature_set import FeatureSet

FOLDS = 5
C = 0.01  # inverse L2 penalty of the probe, chosen before the first run
_HEAD = """\
| split seed | accuracy | ROC AUC | recall violent | non-violent | mean of folds' AUC |
|---|---|---|---|---|---|"""


class Variant(NamedTuple):
    """A row of the table: features of every clip, and what they cost."""

    name: str
    images: float  # through the backbone, a clip
    x_VxNxP: Float[np.ndarray, "V N P"]  # the views that are trained on
    test_views: int = 1  # averaged at test


def main(
    dataset_path: Path,
    cache_dir: Path = Path("cache"),
    split_seeds: tuple[int, ...] = tuple(range(5)),
    random: bool = False,
    on: Path | None = None,
) -> int:
    """Print the table of one data set's folds, or a line of each to the other set."""
    from heads import load

    videos, data = load(dataset_path, cache_dir)
    if random:
        videos = [replace(video, group="") for video in videos]
    if on is not None:
        of_other, other = load(on, cache_dir)
        sets = data.part(videos), other.part(of_other)
        members = [member_of(*sets, split_seeds[0], 0)]
    else:
        members = [
            member_of(data.part(others), data.part(test), seed, fold)
            for seed in split_seeds
            for fold, (others, test) in enumerate(parts_of(videos, seed))
        ]
    print(table_of(members))
    return 0


def parts_of(
    videos: Sequence[Video], split_seed: int
) -> Iterator[tuple[list[Video], list[Video]]]:
    """For each fold the clips of the others, and its own."""
    for split in fold_splits(videos, FOLDS, split_seed):
        yield (
            [video for video in split if video.split != "test"],
            [video for video in split if video.split == "test"],
        )


def table_of(members: Sequence["Member"]) -> str:
    """A row a split seed, then the means over split seeds, on the same resamples."""
    from vd.evaluation.crossval import summarise

    result = summarise(members)
    rows = [
        _row(
            str(one["seed"]),
            one,
            [m for m in result["per_fold"] if m["seed"] == one["seed"]],
        )
        for one in result["per_seed"]
    ]
    means = {
        f"{name}{suffix}": values[key]
        for name, values in result["over_seeds"].items()
        for key, suffix in (("mean", ""), ("ci95", "_ci95"))
    }
    rows.append(_row("mean", means, result["per_fold"]))
    return "\n".join([_HEAD, *rows])


def member_of(
    train: "FeatureSet", test: "FeatureSet", split_seed: int, fold: int
) -> "Member":
    """A probe of the first clips, tested on the others; the split seed is its seed."""
    from vd.evaluation.evaluate import predicted
    from vd.evaluation.predictions import Member
    from vd.evaluation.probe import fit_probe

    probe = fit_probe(train, None, split_seed)
    predictions = predicted(probe.calibration, test, probe.logits(test))
    threshold = probe.calibration.threshold
    return Member(
        Path(f"fold-{fold}"), fold, split_seed, threshold, len(train), predictions
    )


def _row(label: str, values: dict[str, Any], folds: Sequence[dict[str, Any]]) -> str:
    cells = [
        f"{shown(name, values[name])} ({shown(name, values[f'{name}_ci95'])})"
        for name in ("accuracy", "roc_auc", "recall_violent", "recall_nonviolent")
    ]
    of_folds = np.mean([fold["roc_auc"] for fold in folds])
    return f"| {' | '.join([label, *cells, f'{of_folds:.3f}'])} |"


def mean_and_deviation(x: Float[np.ndarray, "*V F D"]) -> Float[np.ndarray, "*V P"]:
    """Of a clip's features over its frames, P = 2 D: what probes read before the change."""
    x = x.astype(np.float32)
    return np.concatenate([x.mean(-2), x.std(-2)], axis=-1)


def table(videos: Sequence[Video], variants: Iterable[Variant], seeds: int) -> None:
    """Print a row a variant; gains are points of accuracy over the first one."""
    from sklearn.metrics import roc_auc_score  # decoding workers import this file too

    labels_N = np.array([v.label for v in videos])
    groups = [v.group or v.id for v in videos]
    parts = [folds(videos, FOLDS, seed) for seed in range(seeds)]
    fold_SxN = np.array([[part[v.id] for v in videos] for part in parts])
    first_N = None
    print("variant, images, accuracy, auc, sd_accuracy, sd_auc, gain, ci95")
    for row in variants:
        made = [out_of_fold(row.x_VxNxP, labels_N, fold_N) for fold_N in fold_SxN]
        logits_SxN = np.array(made)[:, : row.test_views].mean(axis=1)
        right_SxN = 100.0 * ((logits_SxN > 0) == labels_N)
        auc_S = [100 * roc_auc_score(labels_N, logits_N) for logits_N in logits_SxN]
        first_N = right_SxN.mean(0) if first_N is None else first_N
        gain_N = right_SxN.mean(0) - first_N
        scores = right_SxN.mean(1), np.array(auc_S)
        numbers = [
            row.images, *(s.mean() for s in scores), *(s.std() for s in scores),
            gain_N.mean(), half_width(gain_N, groups),
        ]  # fmt: skip
        print(row.name, *np.round(numbers, 1), sep=", ", flush=True)


def out_of_fold(
    x_VxNxP: Float[np.ndarray, "V N P"],
    labels_N: Int[np.ndarray, " N"],
    fold_N: Int[np.ndarray, " N"],
) -> Float[np.ndarray, "V N"]:
    """Logits of every view of every clip, from the probe that has not seen its fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    views = len(x_VxNxP)
    # the loss is a sum over samples: a clip weighs the same in one view or two
    regression = LogisticRegression(C=C / views, max_iter=1000)
    probe = make_pipeline(StandardScaler(), regression)
    x, y = np.concatenate(x_VxNxP), np.tile(labels_N, views)
    cv = PredefinedSplit(np.tile(fold_N, views))
    logits = cross_val_predict(probe, x, y, cv=cv, method="decision_function")
    return logits.reshape(views, -1)


def half_width(gain_N: Float[np.ndarray, " N"], groups: list[str]) -> float:
    """Half of the 95 % interval of a mean, clustered by group (Liang and Zeger 1986)."""
    member_N = np.unique(groups, return_inverse=True)[1]
    residual_G = np.bincount(member_N, gain_N - gain_N.mean())
    return float(1.96 * np.sqrt(np.sum(residual_G**2)) / len(gain_N))


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
