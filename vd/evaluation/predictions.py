"""Test predictions of a run or of a cross-validation: written, read back, pooled."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped

from vd.data.manifest import CLASSES
from vd.errors import VdError
from vd.files import read_csv, read_json
from vd.training.run_folder import read_settings

PROBE = "probe"  # the evaluation of the linear probe beside a run, on its test part


class Predictions(NamedTuple):
    """Predictions for N clips, a column each; strings are in arrays of objects."""

    paths: Shaped[np.ndarray, " N"]
    groups: Shaped[np.ndarray, " N"]  # "" where unknown
    ids: Shaped[np.ndarray, " N"]  # content hash, the path where unknown
    labels_N: Int[np.ndarray, " N"]
    probability_N: Float64[np.ndarray, " N"]
    logit_N: Float64[np.ndarray, " N"]
    predicted_N: Bool[np.ndarray, " N"]  # by the threshold of each clip's own model
    fold_N: Int[np.ndarray, " N"]  # −1 where there are no folds

    def chosen(self, places: Iterable[int]) -> "Predictions":
        """Those of the clips at `places`."""
        return Predictions(*(column[list(places)] for column in self))

    @property
    def tested(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What metrics are of: labels, probabilities and what is predicted."""
        return self.labels_N, self.probability_N, self.predicted_N

    @property
    def grouped(self) -> bool:
        """Whether a group is known."""
        return any(self.groups)

    @property
    def cluster_N(self) -> Shaped[np.ndarray, " N"]:
        """What each clip is resampled with: its group, else the clip and all its copies."""
        first: dict[str, str] = {}
        for path, content in sorted(zip(self.paths, self.ids, strict=True)):
            first.setdefault(content, path)
        clips = zip(self.groups, self.ids, strict=True)
        return np.array(
            [f"group {group}" if group else f"clip {first[i]}" for group, i in clips]
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


def to_rows(predictions: Predictions, **columns: object) -> list[dict[str, Any]]:
    """Rows of CSV, with the further `columns`; decimals read back to the same float64."""
    clips = zip(*predictions, strict=True)
    return [
        {
            "path": path,
            "label": CLASSES[label],
            "group": group,
            **columns,
            "probability": repr(float(probability)),
            "logit": repr(float(logit)),
        }
        for path, group, _, label, probability, logit, *_ in clips
    ]


def _from_rows(
    rows: Sequence[Mapping[str, str]],
    threshold: float,
    ids: Mapping[str, str],
    fold: int | None,
) -> Predictions:
    """Rows of CSV as predictions; `ids` are content hashes by path."""
    paths = [row["path"] for row in rows]
    probability_N = np.array([float(row["probability"]) for row in rows])
    return Predictions(
        np.array(paths, object),
        np.array([row["group"] for row in rows], object),
        np.array([ids.get(path, path) for path in paths], object),
        np.array([CLASSES.index(row["label"]) for row in rows]),
        probability_N,
        np.array([float(row["logit"]) for row in rows]),
        probability_N >= threshold,
        np.full(len(rows), -1 if fold is None else fold),
    )


def read_run(
    run_dir: Path,
    fold: int | None = None,
    name: str = "test",
    ids: Mapping[str, str] | None = None,
) -> Member:
    """A finished run's predictions in its evaluation of that name.

    `ids` are content hashes by path, those of the run's own data set by default. Raises
    `VdError` when a file of it is missing or damaged.
    """
    path = run_dir / f"evaluation_{name}.json"
    if not path.exists():
        raise VdError(
            f"{run_dir} has no {path.name}, so it is not evaluated on test clips of its own; "
            "run its training command again to go on, or read what vd evaluate --on wrote "
            "into evaluation_NAME.json and beside it."
        )
    remedy = "run vd evaluate on the run to write it again"
    threshold = read_json(path, remedy)["threshold"]
    own_ids, train_clips = _splits(run_dir)
    rows = _rows(run_dir / f"predictions_{name}.csv", remedy)
    predictions = _from_rows(rows, threshold, ids or own_ids, fold)
    seed = read_settings(run_dir).training.seed
    return Member(run_dir, fold, seed, threshold, train_clips, predictions)


def read_probes(members: Iterable[Member]) -> list[Member]:
    """The linear probes beside runs; none unless all of them have one."""
    members = list(members)
    files = [member.run_dir / f"evaluation_{PROBE}.json" for member in members]
    if not all(file.exists() for file in files):
        return []
    return [read_run(member.run_dir, member.fold, PROBE) for member in members]


def read_members(folder: Path) -> list[Member]:
    """The one member of a run folder, or all members of a cross-validation.

    Raises `VdError` when the folder is neither, or has not ended.
    """
    if (folder / "config.json").exists():
        return [read_run(folder)]
    path = folder / "crossval.json"
    if not path.exists():
        raise VdError(
            f"{folder} holds neither config.json nor crossval.json: it is not a folder of vd "
            "train or vd crossval, or the cross-validation has not ended; run its command "
            "again to go on, or name another folder."
        )
    remedy = "run its vd crossval command again to write it again"
    rows = defaultdict(list)
    for row in _rows(folder / "predictions.csv", remedy):
        rows[row["fold"], row["seed"]].append(row)
    members = []
    for entry in read_json(path, remedy)["per_fold"]:
        fold, seed, threshold = entry["fold"], entry["seed"], entry["threshold"]
        run_dir = folder / entry["member"]
        ids, _ = _splits(run_dir)
        predictions = _from_rows(rows[str(fold), str(seed)], threshold, ids, fold)
        train_clips = entry["n_train"]
        members.append(Member(run_dir, fold, seed, threshold, train_clips, predictions))
    return members


def pooled_by_seed(members: Sequence[Member]) -> dict[int, Predictions]:
    """The clips of all folds together, sorted by content and path, by seed."""
    of_seed = defaultdict(list)
    for member in members:
        of_seed[member.seed].append(member.predictions)
    pooled = {}
    for seed, parts in sorted(of_seed.items()):
        joined = Predictions(*map(np.concatenate, zip(*parts, strict=True)))
        pooled[seed] = joined.chosen(np.lexsort((joined.paths, joined.ids)))
    return pooled


def _rows(path: Path, remedy: str) -> list[dict[str, str]]:
    """The rows of a CSV file that has some."""
    rows = read_csv(path)
    if not rows:
        raise VdError(f"{path} is missing or empty; {remedy}.")
    return rows


def _splits(run_dir: Path) -> tuple[dict[str, str], int]:
    """Content hash by path, and the number of clips that a run was trained on."""
    rows = read_csv(run_dir / "splits.csv")
    path = run_dir / "evaluation_val.json"
    remedy = "run vd evaluate on the run to write it again"
    trained = trained_splits(read_json(path, remedy) if path.exists() else None)
    train_clips = sum(row["split"] in trained for row in rows)
    return {row["path"]: row["id"] for row in rows}, train_clips


def trained_splits(validation: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The splits that a run was trained on, from its evaluation_val.json.

    With --refit validation is one of them: inner folds took its place, or nothing did.
    """
    refitted = validation is None or "inner_folds" in validation
    return ("train", "val") if refitted else ("train",)
