"""crossval.json: pooled out-of-fold figures, and their spread over folds and seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vd.evaluation.paired import auc_difference, worse_than_probe
from vd.evaluation.predictions import (
    Member,
    Predictions,
    pooled_by_seed,
    read_probes,
    to_rows,
)
from vd.files import write_csv, write_json
from vd.metrics.binary import (
    COLLAPSE,
    METRICS,
    collapsed,
    interval_warnings,
    point_metrics,
    shown,
)
from vd.metrics.intervals import metric_intervals, resampled_metrics


def write_crossval(
    folder: Path, members: Sequence[Member], more: Mapping[str, Any]
) -> dict[str, Any]:
    """Write predictions.csv, then crossval.json; returns its content. `more` are further keys.

    The linear probes beside the members are a row of it, where all members have one.
    """
    result = {**summarise(members, read_probes(members)), **more}
    rows = [
        row
        for one in members
        for row in to_rows(one.predictions, fold=one.fold, seed=one.seed)
    ]
    write_csv(folder / "predictions.csv", rows)
    write_json(folder / "crossval.json", result)
    return result


def summarise(
    members: Sequence[Member], probes: Sequence[Member] = ()
) -> dict[str, Any]:
    """Pooled metrics of each seed and over seeds, and those of each fold, with their spread.

    `probes` are the linear probes beside the members; their figures are under `probe`.
    """
    pooled = pooled_by_seed(members)
    first = next(iter(pooled.values()))
    figures, probe = _figures(members), _of_probes(members, probes)
    return {
        "n": len(first.paths),
        "n_violent": int(first.labels_N.sum()),
        "folds": len({member.fold for member in members}),
        "seeds": list(pooled),
        "groups": len(np.unique(first.cluster_N)) if first.grouped else None,
        **figures,
        "probe": probe,
        "warnings": [
            *_warnings(figures["per_fold"]),
            *worse_than_probe(probe or {}),
            *interval_warnings(first.labels_N, first.cluster_N, first.grouped),
        ],
    }


def _figures(members: Sequence[Member]) -> dict[str, Any]:
    """Metrics of all folds together and of each, over seeds and of each."""
    pooled = pooled_by_seed(members)
    per_model, over_seeds = over_models(list(pooled.values()))
    per_fold = [_of_member(member) for member in members]
    return {
        "over_seeds": over_seeds,
        "over_folds": {n: spread([row[n] for row in per_fold]) for n in METRICS},
        "per_seed": [
            {"seed": seed, **row} for seed, row in zip(pooled, per_model, strict=True)
        ],
        "per_fold": per_fold,
    }


def _of_probes(
    members: Sequence[Member], probes: Sequence[Member]
) -> dict[str, Any] | None:
    """The figures of the linear probes, and how far the members' ROC AUC is above theirs."""
    if not probes:
        return None
    a, b = (list(pooled_by_seed(of).values()) for of in (probes, members))
    difference = auc_difference(a, b, a[0].cluster_N)
    gain = "roc_auc_difference", "roc_auc_difference_ci95"
    return {**_figures(probes), **{name: difference[name] for name in gain}}


def over_models(
    tested: Sequence[Predictions],
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Metrics of several models of the same clips, and their means, both with intervals."""
    clips = tested[0].labels_N, tested[0].cluster_N
    per_model: list[dict[str, Any]] = []
    resampled = []
    for predictions in tested:
        values = point_metrics(*predictions.tested)
        resampled.append(resampled_metrics(*predictions.tested, clips[1]))
        ends = metric_intervals(values, resampled[-1:], *clips)
        per_model.append({**values, **ends})
    spreads = {name: spread([row[name] for row in per_model]) for name in METRICS}
    means = {name: one["mean"] for name, one in spreads.items()}
    ends = metric_intervals(means, resampled, *clips)
    return per_model, {
        name: {"mean": one["mean"], "ci95": ends.get(f"{name}_ci95"), "sd": one["sd"]}
        for name, one in spreads.items()
    }


def _of_member(member: Member) -> dict[str, Any]:
    """The figures of one fold and seed, at the threshold of its own validation part."""
    labels_N, _, predicted_N = tested = member.predictions.tested
    return {
        "fold": member.fold,
        "seed": member.seed,
        "member": member.run_dir.name,
        "n": len(labels_N),
        "n_train": member.train_clips,
        "threshold": member.threshold,
        **point_metrics(*tested),
        "collapsed": collapsed(labels_N, predicted_N),
    }


def flat_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values as a row of CSV, an interval in two columns."""
    row: dict[str, Any] = {}
    for key, value in values.items():
        name, is_interval, _ = key.partition("_ci95")
        if is_interval:
            row[f"{name}_low"], row[f"{name}_high"] = value or (None, None)
        elif not isinstance(value, dict | list):
            row[key] = value
    return row


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample) and range of the defined values."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
    }


def _warnings(per_fold: Sequence[Mapping[str, Any]]) -> list[str]:
    """What limits the figures, in sentences."""
    warnings = []
    fallen = [row["member"] for row in per_fold if row["collapsed"]]
    if fallen:
        warnings.append(collapse_of(fallen, len(per_fold)))
    undefined = [
        metric.label
        for name, metric in METRICS.items()
        if any(row[name] is None for row in per_fold)
    ]
    if undefined:
        warnings.append(
            f"undefined in some fold, and left out there: {', '.join(undefined)}"
        )
    return warnings


def collapse_of(fallen: Sequence[str], members: int) -> str:
    """A sentence about the members that predict nearly one class only."""
    return (
        f"CLASS COLLAPSE in {len(fallen)} of {members} members (for example {fallen[0]}): "
        f"{COLLAPSE}"
    )


def summary(result: Mapping[str, Any]) -> str:
    """A cross-validation in a line, its linear probe in another, and its range over folds."""
    text = (
        f"{result['folds']} folds × {len(result['seeds'])} seeds, {result['n']} clips, each "
        f"tested once a seed: {_in_words(result)}"
    )
    if result["probe"] is not None:
        text += f"\na linear probe on the same features: {_in_words(result['probe'])}"
    folds = result["over_folds"]["accuracy"]
    ends = shown("accuracy", [folds["min"], folds["max"]])
    return f"{text}\naccuracy of a fold: {ends}"


def _in_words(figures: Mapping[str, Any]) -> str:
    """The main figures, with intervals; also the mean of the folds' own ROC AUC."""
    words = []
    for name in ("accuracy", "recall_violent", "recall_nonviolent", "roc_auc"):
        mean, ends, sd = (
            figures["over_seeds"][name][k] for k in ("mean", "ci95", "sd")
        )
        text = f"{METRICS[name].label} {shown(name, mean)}"
        if ends:
            seeds = f", seeds ± {shown(name, sd)}" if sd else ""
            text += f" (95 % interval {shown(name, ends)}{seeds})"
        words.append(text)
    of_folds = shown("roc_auc", figures["over_folds"]["roc_auc"]["mean"])
    return f"{', '.join(words)}, mean of the folds {of_folds}"
