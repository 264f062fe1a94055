"""Test predictions of a run or of a cross-validation: written, read back, pooled."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped

from vd.data.manifest import CLASSES, Video, class_label
from vd.errors import VdError, damage
from vd.files import read_csv, read_json, write_csv
from vd.training.run_folder import read_settings


class Predictions(NamedTuple):
    """The predictions of one model for N clips, in the order of its file."""

    paths: list[str]
    groups: list[str]  # as given, "" where none is known
    labels_N: Int[np.ndarray, " N"]
    probability_N: Float64[np.ndarray, " N"]
    logit_N: Float64[np.ndarray, " N"]

    def chosen(self, places: Sequence[int]) -> "Predictions":
        """Those of the clips at `places`."""
        return Predictions(
            [self.paths[i] for i in places],
            [self.groups[i] for i in places],
            *(values[list(places)] for values in self[2:]),
        )


@dataclass(frozen=True)
class Member:
    """One trained model and its predictions for the clips that it was tested on."""

    run_dir: Path
    fold: int | None  # None: a run's own test part
    seed: int
    threshold: float
    train_clips: int
    predictions: Predictions
    ids: list[str]  # content hash of each clip, "" where it is not known

    @property
    def predicted_N(self) -> Bool[np.ndarray, " N"]:
        """Which clips are predicted to be violent, by the model's own threshold."""
        predicted: np.ndarray = self.predictions.probability_N >= self.threshold
        return predicted


@dataclass(frozen=True)
class Pooled:
    """All clips that one seed tested, each once, sorted by content and path."""

    paths: list[str]
    ids: list[str]
    fold_N: Int[np.ndarray, " N"]  # −1 where there are no folds
    labels_N: Int[np.ndarray, " N"]
    probability_N: Float64[np.ndarray, " N"]
    predicted_N: Bool[np.ndarray, " N"]  # by the threshold of each clip's own model
    cluster_N: Shaped[np.ndarray, " N"]
    grouped: bool  # whether a group is known


def write_predictions(path: Path, videos: Sequence[Video], *arrays: np.ndarray) -> None:
    """predictions_<split>.csv of the arrays probability_N and logit_N."""
    names, groups = [v.name for v in videos], [v.group for v in videos]
    labels_N = np.array([video.label for video in videos])
    predictions = Predictions(names, groups, labels_N, *arrays)
    write_csv(path, prediction_rows(predictions))


def prediction_rows(
    predictions: Predictions, **columns: object
) -> list[dict[str, Any]]:
    """Rows of CSV, with the further `columns`; decimals read back to the same float64."""
    return [
        {
            "path": path,
            "label": CLASSES[label],
            "group": group,
            **columns,
            "probability": repr(float(probability)),
            "logit": repr(float(logit)),
        }
        for path, group, label, probability, logit in zip(*predictions, strict=True)
    ]


def read_predictions(path: Path, remedy: str) -> Predictions:
    """A predictions file; raises `VdError`, with the remedy, when it is damaged."""
    if not path.exists():
        raise VdError(f"{path} does not exist; {remedy}.")
    rows = read_csv(path)
    with _damaged(path, remedy):
        if not rows:
            raise ValueError("it has no row")
        probability_N = np.array([float(row["probability"]) for row in rows])
        if not ((probability_N >= 0) & (probability_N <= 1)).all():
            raise ValueError("a probability is not between 0 and 1")
        return Predictions(
            [row["path"] for row in rows],
            [row["group"] for row in rows],
            np.array([class_label(row["label"]) for row in rows]),
            probability_N,
            np.array([float(row["logit"]) for row in rows]),
        )


def read_run(run_dir: Path, fold: int | None = None, name: str = "test") -> Member:
    """A finished run's predictions in its evaluation of that name.

    Raises `VdError` for an unfinished or damaged run.
    """
    seed = read_settings(run_dir).training.seed
    path = run_dir / f"evaluation_{name}.json"
    if not path.exists():
        raise VdError(
            f"{run_dir} has no {path.name}, so it is not evaluated; run its training "
            "command again to go on."
        )
    remedy = "run vd evaluate on the run to write it again"
    with _damaged(path, remedy):
        threshold = float(read_json(path, remedy)["threshold"])
    predictions = read_predictions(run_dir / f"predictions_{name}.csv", remedy)
    ids, train_clips = _splits(run_dir, predictions.paths)
    return Member(run_dir, fold, seed, threshold, train_clips, predictions, ids)


def read_results(folder: Path) -> list[Member]:
    """The one member of a run folder, or all members of a cross-validation.

    Raises `VdError` when the folder is neither, or is unfinished or damaged.
    """
    if (folder / "config.json").exists():
        return [read_run(folder)]
    path = folder / "crossval.json"
    if not path.exists():
        unfinished = any(folder.glob("fold-*")) if folder.is_dir() else False
        raise VdError(
            f"{folder} is a cross-validation that has not ended; run its command again to "
            "go on."
            if unfinished
            else f"{folder} is no folder of a run or a cross-validation: it holds neither "
            "config.json nor crossval.json; name one that vd train or vd crossval wrote."
        )
    remedy = "run its vd crossval command again to write it again"
    table = folder / "predictions.csv"
    everything = read_predictions(table, remedy)
    places = defaultdict(list)
    with _damaged(table, remedy):
        for place, row in enumerate(read_csv(table)):
            places[int(row["fold"]), int(row["seed"])].append(place)
    with _damaged(path, remedy):
        return [
            _member(folder, row, everything.chosen(places[row["fold"], row["seed"]]))
            for row in read_json(path, remedy)["per_fold"]
        ]


def _member(folder: Path, row: dict[str, Any], predictions: Predictions) -> Member:
    """A member of a cross-validation, from its row in crossval.json."""
    if not predictions.paths:
        raise ValueError(f"{row['member']} has no clip in predictions.csv")
    run_dir = folder / row["member"]
    return Member(
        run_dir, row["fold"], row["seed"], float(row["threshold"]), row["n_train"],
        predictions, _splits(run_dir, predictions.paths)[0],
    )  # fmt: skip


def pooled_by_seed(members: Sequence[Member]) -> dict[int, Pooled]:
    """The clips of all folds together, by seed.

    Raises `VdError` when a seed tests a clip twice, or seeds test different clips.
    """
    of_seed = defaultdict(list)
    for member in members:
        of_seed[member.seed].append(member)
    pooled = {seed: _pool(parts) for seed, parts in sorted(of_seed.items())}
    first = next(iter(pooled.values()))
    for seed, one in pooled.items():
        run_dir = of_seed[seed][0].run_dir
        if len(set(one.paths)) < len(one.paths):
            raise VdError(
                f"{run_dir}: its predictions have a clip twice for seed {seed}; run the "
                "command that wrote them again."
            )
        if one.paths != first.paths or (one.fold_N != first.fold_N).any():
            raise VdError(
                f"{run_dir.parent}: seed {seed} has other clips or folds than another "
                "seed, or the folder of a member is incomplete; run its vd crossval "
                "command again."
            )
    return pooled


def _pool(members: Sequence[Member]) -> Pooled:
    """All clips of some members, in one order."""
    paths = [path for member in members for path in member.predictions.paths]
    groups = [group for member in members for group in member.predictions.groups]
    ids = [content for member in members for content in member.ids]
    order = sorted(range(len(paths)), key=lambda i: (ids[i], paths[i]))

    def ordered(parts: Sequence[np.ndarray]) -> np.ndarray:
        values: np.ndarray = np.concatenate(parts)[order]
        return values

    folds = [-1 if member.fold is None else member.fold for member in members]
    return Pooled(
        [paths[i] for i in order],
        [ids[i] for i in order],
        ordered([np.full(len(m.ids), f) for m, f in zip(members, folds, strict=True)]),
        ordered([member.predictions.labels_N for member in members]),
        ordered([member.predictions.probability_N for member in members]),
        ordered([member.predicted_N for member in members]),
        cluster_names(paths, groups, ids)[order],
        any(groups),
    )


def cluster_names(
    paths: Sequence[str], groups: Sequence[str], ids: Sequence[str]
) -> Shaped[np.ndarray, " N"]:
    """What is resampled as a whole: the group, else the clip with all its copies.

    `ids` are content hashes, "" where unknown.
    """
    first: dict[str, str] = {}
    for path, content in sorted(zip(paths, ids, strict=True)):
        first.setdefault(content or path, path)
    return np.array(
        [
            f"group {group}" if group else f"clip {first[content or path]}"
            for path, group, content in zip(paths, groups, ids, strict=True)
        ]
    )


def _splits(run_dir: Path, paths: Sequence[str]) -> tuple[list[str], int]:
    """Content hash of each path, and the number of clips that a run was trained on."""
    rows = read_csv(run_dir / "splits.csv")
    content = {row["path"]: row["id"] for row in rows}
    train_clips = sum(row["split"] == "train" for row in rows)
    return [content.get(path, "") for path in paths], train_clips


@contextmanager
def _damaged(path: Path, remedy: str) -> Iterator[None]:
    """Turn what missing or wrong values raise in the block into one sentence."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise VdError(f"{path} is damaged ({damage(error)}); {remedy}.") from error
