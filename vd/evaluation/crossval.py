"""A cross-validation told: pooled out-of-fold predictions, and figures over folds and seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vd.data.manifest import CLASSES
from vd.errors import VdError
from vd.evaluation.results import Member, Pooled, agrees, pooled_by_seed
from vd.files import write_csv, write_json
from vd.metrics.binary import (
    COLLAPSE,
    METRICS,
    NAMES,
    below_interval,
    calibration_error_by_chance,
    collapsed,
    interval_warnings,
    intervals,
    mean_interval,
    point_metrics,
    resampled_metrics,
)
from vd.metrics.bootstrap import RESAMPLES

Resampled = Mapping[str, Float[np.ndarray, " R"]]


def write_crossval(
    folder: Path, members: Sequence[Member], more: Mapping[str, Any]
) -> dict[str, Any]:
    """Write predictions.csv, then crossval.json; returns its content. `more` are further keys.

    Every seed tests each clip once, in the fold that was held out.
    """
    result = {**summarise(members), **more}
    write_csv(folder / "predictions.csv", _rows(members))
    write_json(folder / "crossval.json", result)
    return result


def summarise(members: Sequence[Member]) -> dict[str, Any]:
    """Pooled metrics of each seed and over seeds, and those of each fold, with their spread."""
    pooled = pooled_by_seed(members)
    first = next(iter(pooled.values()))
    per_seed, resampled = [], []
    for seed, one in pooled.items():
        arrays = one.labels_N, one.probability_N, one.predicted_N
        metrics = point_metrics(*arrays)
        values = resampled_metrics(*arrays, one.cluster_N)
        found = intervals(metrics, values, one.labels_N, one.predicted_N, one.cluster_N)
        row: dict[str, Any] = {"seed": seed}
        for name in METRICS:
            row |= {name: metrics[name], f"{name}_ci95": found[f"{name}_ci95"]}
        per_seed.append(row)
        resampled.append(values)
    per_fold = [_of_member(member) for member in members]
    chance = [calibration_error_by_chance(p.probability_N) for p in pooled.values()]
    groups = len(np.unique(first.cluster_N))
    over_seeds = _over_seeds(per_seed, resampled, first)
    return {
        "n": len(first.paths),
        "n_violent": int(first.labels_N.sum()),
        "folds": len({member.fold for member in members}),
        "seeds": list(pooled),
        "groups": groups if first.grouped else None,
        "resamples": RESAMPLES,
        "resampled_groups": groups,
        "over_seeds": over_seeds,
        "ece_by_chance": float(np.mean(chance)),
        "over_folds": {name: _spread([r[name] for r in per_fold]) for name in METRICS},
        "per_seed": per_seed,
        "per_fold": per_fold,
        "warnings": _warnings(per_fold, over_seeds, first),
    }


def check_told(
    told: Mapping[str, Any], members: Sequence[Member], path: Path, remedy: str
) -> None:
    """Raise `VdError` unless crossval.json tells what the predictions give."""
    for key, value in summarise(members).items():
        if not agrees(told.get(key, value), value):
            raise VdError(
                f"{path} has another {key} than predictions.csv gives, so one of them was "
                f"changed; {remedy}."
            )


def _over_seeds(
    per_seed: Sequence[Mapping[str, Any]], resampled: Sequence[Resampled], one: Pooled
) -> dict[str, Any]:
    """Mean over seeds of each pooled metric, its interval over groups, spread over seeds."""
    made = {}
    for name in METRICS:
        told = _spread([row[name] for row in per_seed])
        found = None
        if told["undefined"] == 0:
            found = mean_interval(
                told["mean"],
                [values[name] for values in resampled],
                [row[f"{name}_ci95"] for row in per_seed],
                one.cluster_N,
            )
        made[name] = {"mean": told["mean"], "ci95": found, "sd": told["sd"]}
    return made


def _of_member(member: Member) -> dict[str, Any]:
    """The figures of one fold and seed, at the threshold of its own validation part."""
    said, predicted_N = member.predictions, member.predicted_N
    metrics = point_metrics(said.labels_N, said.probability_N, predicted_N)
    return {
        "fold": member.fold,
        "seed": member.seed,
        "member": member.run_dir.name,
        "n": len(said.paths),
        "n_train": member.train_clips,
        "threshold": member.threshold,
        **{name: metrics[name] for name in METRICS},
        "collapsed": collapsed(said.labels_N, predicted_N),
    }


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample) and range of the defined values."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
        "undefined": len(values) - len(known),
    }


def _warnings(
    per_fold: Sequence[Mapping[str, Any]],
    over_seeds: Mapping[str, Mapping[str, Any]],
    one: Pooled,
) -> list[str]:
    """What a reader of the figures must know, in sentences."""
    said = []
    fallen = [row["member"] for row in per_fold if row["collapsed"]]
    if fallen:
        said.append(collapse_of(fallen, len(per_fold)))
    if not one.grouped:
        said.append(
            "no source groups known: clips of one recording may be in several folds, and "
            "the intervals treat clips as independent"
        )
    found = {name: told["ci95"] for name, told in over_seeds.items()}
    said += interval_warnings(one.labels_N, one.cluster_N, found)
    said += below_interval(over_seeds["ece"]["mean"], found["ece"])
    undefined = [
        NAMES[name] for name in METRICS if any(row[name] is None for row in per_fold)
    ]
    if undefined:
        said.append(
            f"{', '.join(undefined)} undefined in some fold, and left out there"
        )
    return said


def collapse_of(fallen: Sequence[str], members: int) -> str:
    """A sentence about the members that fell to one class."""
    return (
        f"CLASS COLLAPSE in {len(fallen)} of {members} members ({fallen[0]} for one): "
        f"{COLLAPSE}"
    )


def _rows(members: Sequence[Member]) -> list[dict[str, Any]]:
    """The rows of predictions.csv, in the order of seed and fold."""
    return [
        {
            "path": path,
            "label": CLASSES[label],
            "group": group,
            "fold": member.fold,
            "seed": member.seed,
            "probability": repr(float(probability)),
            "logit": repr(float(logit)),
        }
        for member in members
        for path, group, label, probability, logit in zip(
            *member.predictions, strict=True
        )
    ]


def summary(result: Mapping[str, Any]) -> str:
    """A cross-validation in words."""
    of = result["over_seeds"]

    def told(name: str, factor: float = 100, unit: str = " %") -> str:
        mean, found, sd = (of[name][key] for key in ("mean", "ci95", "sd"))
        if mean is None:
            return "undefined"
        digits = 1 if unit else 3
        text = f"{factor * mean:.{digits}f}{unit}"
        if found:
            low, high = (f"{factor * end:.{digits}f}{unit}" for end in found)
            text += f" (95 % interval {low} to {high}"
            text += f", seeds ± {factor * sd:.{digits}f})" if sd is not None else ")"
        return text

    first = (
        f"{result['folds']} folds × {len(result['seeds'])} seeds, {result['n']} clips, each "
        f"tested once a seed: accuracy {told('accuracy')}, recall violent "
        f"{told('recall_violent')}, non-violent {told('recall_nonviolent')}, ROC AUC "
        f"{told('roc_auc', 1, '')}"
    )
    spread = result["over_folds"]["accuracy"]
    folds = f"accuracy of a fold: {100 * spread['min']:.1f} % to {100 * spread['max']:.1f} %"
    warnings = [f"warning: {warning}" for warning in result["warnings"]]
    return "\n".join([first, folds, *warnings])
