"""Test predictions of a run, or of a cross-validation, read back from its folder."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped

from vd.errors import VdError, damage
from vd.evaluation.predictions import Predictions, cluster_names, read_predictions
from vd.files import read_csv, read_json
from vd.training.run_folder import read_settings


@dataclass(frozen=True)
class Member:
    """What one trained model said of the clips that it was tested on."""

    run_dir: Path
    fold: int | None  # None: a run's own test part
    seed: int
    threshold: float
    train_clips: int
    predictions: Predictions
    ids: list[str]  # content hash of each clip, "" where it is not known

    @property
    def predicted_N(self) -> Bool[np.ndarray, " N"]:
        """Which clips it says are violent, by its own threshold."""
        predicted: np.ndarray = self.predictions.probability_N >= self.threshold
        return predicted


@dataclass(frozen=True)
class Pooled:
    """Of one seed: every clip once, sorted by content and path; N clips."""

    paths: list[str]
    ids: list[str]
    fold_N: Int[np.ndarray, " N"]  # −1 where there are no folds
    labels_N: Int[np.ndarray, " N"]
    probability_N: Float64[np.ndarray, " N"]
    predicted_N: Bool[np.ndarray, " N"]  # by the threshold of each clip's own model
    cluster_N: Shaped[np.ndarray, " N"]
    grouped: bool  # whether a group is known


def read_run(run_dir: Path, fold: int | None = None, name: str = "test") -> Member:
    """What a finished run said in the evaluation of that name.

    Raises `VdError` for an unfinished or damaged one.
    """
    seed = read_settings(run_dir).training.seed
    path = run_dir / f"evaluation_{name}.json"
    if not path.exists():
        raise VdError(
            f"{run_dir} lacks {path.name}, so it is not evaluated; run its training command "
            "again to go on."
        )
    remedy = "run vd evaluate on the run to write it again"
    values = read_json(path, remedy)
    try:
        threshold = _threshold(values)
    except (KeyError, TypeError, ValueError) as error:
        raise VdError(
            f"{path} has no threshold ({damage(error)}); {remedy}."
        ) from error
    predictions = read_predictions(run_dir / f"predictions_{name}.csv", remedy)
    content, train_clips = _splits(run_dir)
    ids = [content.get(clip, "") for clip in predictions.paths]
    member = Member(run_dir, fold, seed, threshold, train_clips, predictions, ids)
    _check_figures(member, values, path, f"predictions_{name}.csv", remedy)
    return member


def read_results(folder: Path) -> list[Member]:
    """The one member of a run folder, or all those of a cross-validation.

    Raises `VdError` when the folder is neither, is unfinished or damaged.
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
    told = read_json(path, remedy)
    table = folder / "predictions.csv"
    parts = _by_member(table, remedy)
    members = []
    try:
        for row in told["per_fold"]:
            run_dir, key = folder / row["member"], (str(row["fold"]), str(row["seed"]))
            content, train_clips = _splits(run_dir)
            if train_clips not in (0, row["n_train"]):
                raise ValueError(f"{run_dir.name} was trained on {train_clips} clips")
            predictions = parts.pop(key)
            ids = [content.get(clip, "") for clip in predictions.paths]
            member = Member(
                run_dir, int(row["fold"]), int(row["seed"]), _threshold(row),
                int(row["n_train"]), predictions, ids,
            )  # fmt: skip
            _check_figures(member, row, path, table.name, remedy)
            members.append(member)
        if parts or not members:
            raise ValueError(f"its members are not those of {table.name}")
    except (KeyError, TypeError, ValueError) as error:
        raise VdError(f"{path} is damaged ({damage(error)}); {remedy}.") from error
    return members


def _check_figures(
    member: Member, told: Mapping[str, Any], path: Path, table: str, remedy: str
) -> None:
    """Raise `VdError` unless the predictions have the figures that `path` tells."""
    from vd.metrics.binary import METRICS, NAMES, point_metrics

    said = member.predictions
    if len(set(said.paths)) < len(said.paths):
        raise VdError(f"{path.parent / table} has a clip twice; {remedy}.")
    if not len(said.paths):
        raise VdError(f"{path.parent / table} has no clip; {remedy}.")
    counted = point_metrics(said.labels_N, said.probability_N, member.predicted_N)
    for name in METRICS:
        if name not in told:
            raise VdError(f"{path} is damaged (it has no {NAMES[name]}); {remedy}.")
        if not agrees(told[name], counted[name]):
            raise VdError(
                f"{path} says {NAMES[name]} {told[name]!r} where {table} gives "
                f"{counted[name]}, so one of them was changed; {remedy}."
            )


def agrees(told: Any, counted: Any) -> bool:
    """Whether JSON tells what was counted, numbers up to rounding; it may tell more."""
    if isinstance(counted, dict):
        return isinstance(told, dict) and all(
            agrees(told[key], value) for key, value in counted.items() if key in told
        )
    if isinstance(counted, list):
        return (
            isinstance(told, list)
            and len(told) == len(counted)
            and all(map(agrees, told, counted))
        )
    if isinstance(counted, float) and isinstance(told, int | float):
        return math.isclose(told, counted, abs_tol=1e-9)
    return bool(told == counted)


def pooled_by_seed(members: Sequence[Member]) -> dict[int, Pooled]:
    """The clips of all folds together, by seed.

    Raises `VdError` when a seed tests a clip twice, or seeds test different clips.
    """
    of_seed = defaultdict(list)
    for member in members:
        of_seed[member.seed].append(member)
    made = {seed: _pool(parts) for seed, parts in sorted(of_seed.items())}
    first = next(iter(made.values()))
    for seed, pooled in made.items():
        folder = of_seed[seed][0].run_dir.parent
        if len(set(pooled.paths)) < len(pooled.paths):
            raise VdError(
                f"{folder}: seed {seed} has a clip twice; run its vd crossval command again."
            )
        if pooled.paths != first.paths or (pooled.fold_N != first.fold_N).any():
            raise VdError(
                f"{folder}: seed {seed} has other clips or folds than another seed, or the "
                "folder of a member is incomplete; run its vd crossval command again."
            )
    return made


def _pool(members: Sequence[Member]) -> Pooled:
    """All clips of some members, in one order."""
    paths, groups, ids = [], [], []
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    for member in members:
        said = member.predictions
        paths += said.paths
        groups += said.groups
        ids += member.ids
        fold = -1 if member.fold is None else member.fold
        columns["fold"].append(np.full(len(said.paths), fold))
        columns["label"].append(said.labels_N)
        columns["probability"].append(said.probability_N)
        columns["predicted"].append(member.predicted_N)
    order = sorted(range(len(paths)), key=lambda i: (ids[i], paths[i]))
    column = {name: np.concatenate(parts)[order] for name, parts in columns.items()}
    clusters_N = cluster_names(paths, groups, ids)
    return Pooled(
        [paths[i] for i in order],
        [ids[i] for i in order],
        column["fold"],
        column["label"],
        column["probability"],
        column["predicted"],
        clusters_N[order],
        any(groups),
    )


def _by_member(path: Path, remedy: str) -> dict[tuple[str, str], Predictions]:
    """The predictions of a cross-validation by (fold, seed)."""
    everything = read_predictions(path, remedy)
    rows = defaultdict(list)
    try:
        for index, row in enumerate(read_csv(path)):
            rows[row["fold"], row["seed"]].append(index)
    except KeyError as error:
        raise VdError(f"{path} lacks the column {error}; {remedy}.") from error
    return {
        key: Predictions(
            [everything.paths[i] for i in chosen],
            [everything.groups[i] for i in chosen],
            everything.labels_N[chosen],
            everything.probability_N[chosen],
            everything.logit_N[chosen],
        )
        for key, chosen in rows.items()
    }


def _splits(run_dir: Path) -> tuple[dict[str, str], int]:
    """Content hash by path, and the number of clips that a run was trained on."""
    rows = read_csv(run_dir / "splits.csv")
    content = {row.get("path", ""): row.get("id", "") for row in rows}
    return content, sum(row.get("split") == "train" for row in rows)


def _threshold(values: Any) -> float:
    """The threshold in JSON values; raises `ValueError` or `TypeError` when it is none."""
    value = values["threshold"]
    if isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} is no threshold")
    return float(value)
