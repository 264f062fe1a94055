"""Trained on one data set, tested on others: what members of a cross-validation say there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from vd.config import DataConfig
from vd.console import say
from vd.evaluation.cross_dataset import Other, facts_of, open_other, without_trained
from vd.evaluation.crossval import summarise
from vd.evaluation.evaluate import evaluate_split
from vd.evaluation.predictions import cluster_names
from vd.evaluation.restore import moved, restore
from vd.evaluation.results import Member, agrees, read_results, read_run
from vd.files import read_json
from vd.metrics.binary import (
    METRICS,
    collapsed,
    intervals,
    mean_interval,
    point_metrics,
    resampled_metrics,
)
from vd.training.feature_set import FeatureSet

_REMEDY = "delete it, and the same command evaluates again"


def say_of_other(
    members: Sequence[Member], data: DataConfig, name: str
) -> list[Member | None]:
    """What each member says of another data set; None where it knew all of its clips.

    Writes evaluation_<name>.json and predictions_<name>.csv into each member's folder; one
    that has them of the same clips is left as it is.
    """
    first = members[0].run_dir
    config = moved(restore(first).config, first, None, None)
    other = open_other(replace(config, data=data), first, name)
    everything = FeatureSet(other.videos, other.store)
    return [_member_on(member, everything, other, data) for member in members]


def _member_on(
    member: Member, everything: FeatureSet, other: Other, data: DataConfig
) -> Member | None:
    """One member."""
    run_dir = member.run_dir
    videos, left_out = without_trained(other.videos, run_dir)
    if not videos:
        return None
    facts = facts_of(other, videos, left_out)
    path = run_dir / f"evaluation_{other.name}.json"
    before = read_json(path, _REMEDY) if path.exists() else None
    if not isinstance(before, dict) or any(
        before.get(key) != value for key, value in facts.items()
    ):
        restored = restore(run_dir)
        restored = replace(restored, config=replace(restored.config, data=data))
        evaluate_split(
            restored, everything.part(videos), run_dir, other.name, more=facts
        )
        say(f"{run_dir.name} is tested on {len(videos)} clips of {other.name}")
    content = {video.name: video.id for video in videos}
    said = read_run(run_dir, member.fold, other.name)
    return replace(said, ids=[content[path] for path in said.predictions.paths])


def cell(members: Sequence[Member | None]) -> dict[str, Any]:
    """A cell of the matrix: mean over members, over the clips that none of them knew.

    The interval is of that mean over resampled groups, the same for all members.
    """
    known = [member for member in members if member is not None]
    none = {"n": 0, "members": len(members), "collapsed": 0, **dict.fromkeys(METRICS)}
    if len(known) < len(members) or not known:
        return none
    common = reduce(set.__and__, (set(m.predictions.paths) for m in known))
    if not common:
        return none
    points, values, found, fallen = [], [], [], 0
    for member in known:
        said = member.predictions
        inside = [i for i, path in enumerate(said.paths) if path in common]
        cluster_N = cluster_names(
            [said.paths[i] for i in inside],
            [said.groups[i] for i in inside],
            [member.ids[i] for i in inside],
        )
        probability_N = said.probability_N[inside]
        arrays = said.labels_N[inside], probability_N, probability_N >= member.threshold
        points.append(point_metrics(*arrays))
        values.append(resampled_metrics(*arrays, cluster_N))
        labels_N, _, said_N = arrays
        found.append(intervals(points[-1], values[-1], labels_N, said_N, cluster_N))
        fallen += collapsed(labels_N, said_N)
    made: dict[str, Any] = {
        "n": len(common), "members": len(known), "collapsed": fallen,
    }  # fmt: skip
    for name in METRICS:
        each = [metrics[name] for metrics in points]
        some = [value for value in each if value is not None]
        whole = len(some) == len(each)
        made[name] = float(np.mean(some)) if whole else None
        made[f"{name}_ci95"] = (
            mean_interval(
                made[name],
                [v[name] for v in values],
                [one[f"{name}_ci95"] for one in found],
                cluster_N,
            )
            if whole
            else None
        )
        made[f"{name}_sd"] = (
            float(np.std(some, ddof=1)) if whole and len(some) > 1 else None
        )
    return made


def own_cell(own: dict[str, Any], members: int) -> dict[str, Any]:
    """The cell of the data set that was trained on: its held-out folds, pooled."""
    fallen = sum(row["collapsed"] for row in own["per_fold"])
    made: dict[str, Any] = {"n": own["n"], "members": members, "collapsed": fallen}
    for name, told in own["over_seeds"].items():
        made |= {
            name: told["mean"],
            f"{name}_ci95": told["ci95"],
            f"{name}_sd": own["over_folds"][name]["sd"],
        }
    return made


def check_matrix(folder: Path, own: str, told: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless a cell tells what its members' predictions give.

    `own` is the name of the first data set. But for intervals on other data: its copies of
    clips are not known here.
    """
    trained, tested = told["trained_on"], told["tested_on"]
    members = read_results(folder if trained == own else folder_of(folder, trained))
    if trained == tested:
        counted = own_cell(summarise(members), len(members))
    else:
        counted = cell(
            [
                read_run(one.run_dir, one.fold, tested)
                if (one.run_dir / f"evaluation_{tested}.json").exists()
                else None
                for one in members
            ]
        )
        counted = {k: v for k, v in counted.items() if not k.endswith("_ci95")}
    if not agrees(told, counted):
        raise ValueError(
            f"its cell of {trained} and {tested} is not that of the predictions"
        )


def matrix_rows(matrix: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of matrix.csv."""
    shown = "accuracy", "balanced_accuracy", "recall_violent", "recall_nonviolent", "roc_auc"  # fmt: skip
    rows = []
    for entry in matrix:
        row = {
            key: entry[key]
            for key in ("trained_on", "tested_on", "n", "members", "collapsed")
        }
        for name in shown:
            low, high = entry.get(f"{name}_ci95") or (None, None)
            row |= {name: entry[name], f"{name}_low": low, f"{name}_high": high}
        rows.append({k: "" if v is None else v for k, v in row.items()})
    return rows


def folder_of(folder: Path, name: str) -> Path:
    """Where the cross-validation on a further data set is kept."""
    return folder / f"on-{name}"
