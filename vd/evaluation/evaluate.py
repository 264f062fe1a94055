"""Evaluation of a restored checkpoint: metrics, slices, predictions, pictures."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from vd import plots
from vd.errors import VdError
from vd.evaluation.operating_points import nonviolent_hours, operating_points
from vd.evaluation.predictions import cluster_names, write_predictions
from vd.evaluation.restore import (
    Restored,
    check_features,
    features_of_run,
    moved,
    restore,
)
from vd.evaluation.slices import seconds, slice_values, slices
from vd.files import write_json
from vd.metrics import calibration
from vd.metrics.binary import COLLAPSE, evaluation_metrics, roc_auc
from vd.models.scoring import score
from vd.training.feature_set import FeatureSet
from vd.training.run_folder import videos_of

__all__ = [
    "Restored", "check_features", "evaluate", "evaluate_split", "fit_calibration",
    "moved", "restore", "summary",
]  # fmt: skip


_SEEN = {
    "train": "these clips were trained on: the figures say nothing of new ones",
    "val": "the best epoch, temperature and threshold were chosen on these clips: the "
    "figures flatter",
    "all": "most of these clips were trained or validated on: the figures say nothing of "
    "new ones",
}


def evaluate(
    run_dir: Path,
    split: str = "test",
    tta: bool = False,
    dataset_path: Path | None = None,
    cache_dir: Path | None = None,
) -> dict[str, Any]:
    """Restore a run, evaluate one of its splits, or all, and write its files.

    `tta` averages the logits of all stored views. The two paths say where data set and
    features have moved; missing features are extracted again. Without `tta` the figures
    are those that the end of training wrote, to the last digit.
    """
    restored = restore(run_dir)
    if dataset_path is not None and not dataset_path.exists():
        raise VdError(
            f"--dataset-path {dataset_path} does not exist; leave it out, or name the place "
            "where the data set is now."
        )
    config = moved(restored.config, run_dir, dataset_path, cache_dir)
    everything = videos_of(run_dir, config.data.dataset_path)
    if dataset_path is not None and not any(v.path.exists() for v in everything):
        raise VdError(
            f"--dataset-path {dataset_path} has none of the clips of {run_dir}; leave it out "
            "to use the stored features, or evaluate another data set with --on."
        )
    videos = [video for video in everything if split in (video.split, "all")]
    if not videos:
        raise VdError(
            f"--split {split}: {run_dir} has no such part; use train, val, test or all."
        )
    store = features_of_run(videos, restored, config, run_dir)
    restored = replace(restored, config=config)
    return evaluate_split(restored, FeatureSet(videos, store), run_dir, split, tta)


def evaluate_split(
    restored: Restored,
    data: FeatureSet,
    run_dir: Path,
    split: str,
    tta: bool = False,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Score `data` and write predictions, pictures, and last evaluation_<split>.json.

    `more` are further keys of it.
    """
    if tta and data.views == 1:
        raise VdError(
            f"--tta averages over views, and the features of {run_dir} have one only; leave "
            "it out, or train with --feature-preset best."
        )
    clips = data.in_order(data.views if tta else 1)
    logit_N = score(restored.head, restored.params, clips)
    probability_N = restored.calibration.probability(logit_N)
    name = f"{split}_tta" if tta else split  # beside the run's own figures
    write_predictions(
        run_dir / f"predictions_{name}.csv", data.videos, probability_N, logit_N
    )
    _draw(restored, data, probability_N, run_dir, "" if name == "test" else f"_{name}")
    result = {
        "split": split,
        **_figures(restored, data, probability_N),
        "tta": tta,
        **(more or {}),
    }
    if split in _SEEN:
        result["warnings"].append(_SEEN[split])
    write_json(run_dir / f"evaluation_{name}.json", result)
    return result


def _figures(
    restored: Restored, data: FeatureSet, probability_N: Float64[np.ndarray, " N"]
) -> dict[str, Any]:
    """What evaluation_<split>.json says of the probabilities."""
    fitted, videos = restored.calibration, data.videos
    labels_N = data.labels_N.astype(int)
    groups = [video.group for video in videos]
    clusters_N = cluster_names(
        [video.name for video in videos], groups, [video.id for video in videos]
    )
    outcomes = [data.store.rows[video.id].outcome for video in videos]
    metrics = evaluation_metrics(labels_N, probability_N, clusters_N, fitted.threshold)
    warnings = metrics.pop("warnings")
    grey_N = [outcome.brightness for outcome in outcomes]
    if None in grey_N:
        warnings.append("no slices by brightness: an earlier version made the features")
    if not any(groups):
        warnings.append(
            "no source groups known: clips of one recording may be in train and test, and "
            "the interval treats clips as independent"
        )
    if fitted.uninformative:
        warnings.append(
            f"the temperature, {fitted.temperature:.1f}, is the largest that is tried: on "
            "validation the detector told hardly anything"
        )
    if fitted.false_alarm_threshold is None:
        warnings.append(
            "no operating point at 5 % false alarms: the run was calibrated by an earlier "
            "version; delete its calibration.json, and its command fits it again"
        )
    seconds_N = np.array([seconds(outcome) for outcome in outcomes])
    values = slice_values(videos, outcomes, None if None in grey_N else grey_N)
    return {
        **metrics,
        "threshold": fitted.threshold,
        "threshold_source": fitted.threshold_source,
        "temperature": fitted.temperature,
        "groups": len(np.unique(clusters_N)) if any(groups) else None,
        "nonviolent_hours": nonviolent_hours(labels_N, seconds_N),
        "operating_points": operating_points(
            labels_N, probability_N, clusters_N, seconds_N, fitted
        ),
        "slices": slices(values, labels_N, probability_N, clusters_N, fitted.threshold),
        "warnings": warnings,
    }


def _draw(
    restored: Restored,
    data: FeatureSet,
    probability_N: Float64[np.ndarray, " N"],
    run_dir: Path,
    suffix: str,
) -> None:
    """Confusion matrix, ROC curve and reliability diagram."""
    labels_N, threshold = data.labels_N.astype(int), restored.calibration.threshold
    area = roc_auc(labels_N, probability_N)
    name = "undefined" if area is None else f"area {area:.3f}"
    figures = {
        "confusion": plots.confusion(labels_N, probability_N, threshold),
        "roc": plots.rates({name: (labels_N, probability_N)}, "roc"),
        "reliability": plots.reliability(labels_N, probability_N),
    }
    for picture, figure in figures.items():
        plots.save(figure, run_dir / f"{picture}{suffix}.png")


def fit_calibration(
    restored: Restored, val_set: FeatureSet, run_dir: Path, even_logit: float
) -> Restored:
    """Fit temperature and thresholds on validation and write calibration.json.

    `even_logit` is the loss's own threshold, as `vd.metrics.calibration.fit` takes it.
    """
    logit_N = score(restored.head, restored.params, val_set.in_order())
    fitted = calibration.fit(logit_N, val_set.labels_N.astype(int), even_logit)
    write_json(run_dir / "calibration.json", asdict(fitted))
    return replace(restored, calibration=fitted)


def summary(result: dict[str, Any]) -> str:
    """An evaluation in words."""

    def percent(value: float | None) -> str:
        return "undefined" if value is None else f"{100 * value:.1f} %"

    auc, found = result["roc_auc"], result["accuracy_ci95"]
    between = f"{percent(found[0])} to {percent(found[1])}" if found else "undefined"
    text = (
        f"{result['split']}{', views averaged' * result['tta']}: accuracy {percent(result['accuracy'])} "
        f"(95 % interval {between}, {result['n']} clips), "
        f"recall violent {percent(result['recall_violent'])}, non-violent "
        f"{percent(result['recall_nonviolent'])}, ROC AUC "
        + ("undefined" if auc is None else f"{auc:.3f}")
    )
    for warning in result.get("warnings", ()):
        text += f"\nwarning: {warning}"
    if result["collapsed"]:
        text += f"\nWARNING: CLASS COLLAPSE: {COLLAPSE}"
    return text
