"""Test predictions of a run or of a cross-validation: written, read back, pooled."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped

from vd.data.manifest import CLASSES
from vd.errors import VdError
from vd.files import read_csv, read_json
from vd.training.run_folder import read_settings


class Predictions(NamedTuple):
    """Predictions for N clips, a column each; strings are in arrays of objects."""

    paths: Shaped[np.ndarray, " N"]
    groups: Shaped[np.ndarray, " N"]  # "" where unknown
    ids: Shaped[np.ndarray, " N"]  # content hash, "" where unknown
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
        contents = np.where(self.ids == "", self.paths, self.ids)
        first: dict[str, str] = {}
        for path, content in sorted(zip(self.paths, contents, strict=True)):
            first.setdefault(content, path)
        clips = zip(self.groups, contents, strict=True)
        return np.array(
            [f"group {group}" if group else f"clip {first[c]}" for group, c in clips]
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


def from_rows(
    rows: Sequence[Mapping[str, str]],
    threshold: float = 0.5,
    ids: Mapping[str, str] | None = None,
    fold: int | None = None,
) -> Predictions:
    """Rows of CSV as predictions; `ids` are content hashes by path.

    Raises `KeyError`, `TypeError` or `ValueError` when they are damaged.
    """
    paths = [row["path"] for row in rows]
    probability_N = np.array([float(row["probability"]) for row in rows])
    if not rows or not ((probability_N >= 0) & (probability_N <= 1)).all():
        raise ValueError("it has no row, or a probability is not between 0 and 1")
    return Predictions(
        np.array(paths, object),
        np.array([row["group"] for row in rows], object),
        np.array([(ids or {}).get(path, "") for path in paths], object),
        np.array([CLASSES.index(row["label"]) for row in rows]),
        probability_N,
        np.array([float(row["logit"]) for row in rows]),
        probability_N >= threshold,
        np.full(len(rows), -1 if fold is None else fold),
    )


def read_run(run_dir: Path, fold: int | None = None, name: str = "test") -> Member:
    """A finished run's predictions in its evaluation of that name."""
    path = run_dir / f"evaluation_{name}.json"
    if not path.exists():
        raise VdError(
            f"{run_dir} has no {path.name}, so it is not evaluated; run its training "
            "command again to go on."
        )
    seed = read_settings(run_dir).training.seed
    ids, train_clips = _splits(run_dir)
    table = run_dir / f"predictions_{name}.csv"
    remedy = "run vd evaluate on the run to write it again"
    with _damaged(f"{path} or {table.name}", remedy):
        threshold = float(read_json(path, remedy)["threshold"])
        predictions = from_rows(read_csv(table), threshold, ids, fold)
    return Member(run_dir, fold, seed, threshold, train_clips, predictions)


def read_results(folder: Path) -> list[Member]:
    """The one member of a run folder, or all members of a cross-validation."""
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
    members = []
    with _damaged(f"{path} or predictions.csv", remedy):
        for row in read_csv(folder / "predictions.csv"):
            rows[row["fold"], row["seed"]].append(row)
        for entry in read_json(path, remedy)["per_fold"]:
            fold, seed, threshold = entry["fold"], entry["seed"], entry["threshold"]
            run_dir = folder / entry["member"]
            tested = rows[str(fold), str(seed)]
            predictions = from_rows(tested, threshold, _splits(run_dir)[0], fold)
            members.append(
                Member(run_dir, fold, seed, threshold, entry["n_train"], predictions)
            )
    return members


def pooled_by_seed(members: Sequence[Member]) -> dict[int, Predictions]:
    """The clips of all folds together, sorted by content and path, by seed.

    Raises `VdError` when a seed tests a clip twice, or seeds test different clips.
    """
    of_seed = defaultdict(list)
    for member in members:
        of_seed[member.seed].append(member.predictions)
    pooled = {}
    for seed, parts in sorted(of_seed.items()):
        joined = Predictions(*map(np.concatenate, zip(*parts, strict=True)))
        pooled[seed] = joined.chosen(np.lexsort((joined.paths, joined.ids)))
    first = next(iter(pooled.values()))
    for seed, one in pooled.items():
        if (
            len(set(one.paths)) < len(one.paths)
            or not np.array_equal(one.paths, first.paths)
            or not np.array_equal(one.fold_N, first.fold_N)
        ):
            raise VdError(
                f"{members[0].run_dir.parent}: seed {seed} tests a clip twice, or other "
                "clips or folds than another seed; run the command that wrote the "
                "predictions again."
            )
    return pooled


def _splits(run_dir: Path) -> tuple[dict[str, str], int]:
    """Content hash by path, and the number of clips that a run was trained on."""
    rows = read_csv(run_dir / "splits.csv")
    train_clips = sum(row["split"] == "train" for row in rows)
    return {row["path"]: row["id"] for row in rows}, train_clips


@contextmanager
def _damaged(files: str, remedy: str) -> Iterator[None]:
    """Turn what a missing or wrong value raises in the block into one sentence."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise VdError(f"{files} is damaged ({error!r}); {remedy}.") from error
