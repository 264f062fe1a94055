"""Evaluation: metrics, slices, predictions and pictures of one part of a data set."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int

from vd import plots
from vd.config import Config
from vd.errors import VdError
from vd.evaluation.operating_points import nonviolent_hours, operating_points
from vd.evaluation.predictions import cluster_names, write_predictions
from vd.evaluation.restore import Restored, features_of_run, moved, restore
from vd.evaluation.slices import seconds, slice_values, slices
from vd.files import write_json
from vd.metrics.binary import COLLAPSE, evaluation_metrics, roc_auc
from vd.metrics.calibration import Calibration, fit
from vd.models.head import Head, Params
from vd.models.scoring import score
from vd.training.feature_set import FeatureSet
from vd.training.run_folder import videos_of

_SEEN = {
    "train": "the model was trained on these clips: on new ones it is worse",
    "val": "the best epoch, temperature and threshold were chosen on these clips: on new "
    "ones the model is worse",
    "all": "the model was trained or validated on most of these clips: on new ones it is "
    "worse",
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
    return evaluate_split(restored, FeatureSet(videos, store), run_dir, split, tta)


def evaluate_trained(
    config: Config,
    head: Head,
    params: Params,
    sets: Mapping[str, FeatureSet],
    even_logit: float,
) -> dict[str, dict[str, Any]]:
    """Calibrate a trained model and evaluate validation, then test, by split.

    Writes calibration.json and the files of both into the run folder. `even_logit` is the
    loss's own threshold, as `vd.metrics.calibration.fit` takes it.
    """
    run_dir, val_set = config.run.checkpoint_dir, sets["val"]
    logits = {
        split: score(head, params, sets[split].in_order()) for split in ("val", "test")
    }
    fitted = fit(logits["val"], val_set.labels_N.astype(int), even_logit)
    write_json(run_dir / "calibration.json", asdict(fitted))
    return {
        split: _write(fitted, sets[split], logit_N, run_dir, split)
        for split, logit_N in logits.items()
    }


def evaluate_split(
    restored: Restored,
    data: FeatureSet,
    run_dir: Path,
    split: str,
    tta: bool = False,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score `data` and write its files; `more` are further keys of the evaluation."""
    if tta and data.views == 1:
        raise VdError(
            f"--tta averages over views, and the features of {run_dir} have only one; leave "
            "it out, or train with --feature-preset best."
        )
    clips = data.in_order(data.views if tta else 1)
    logit_N = score(restored.head, restored.params, clips)
    return _write(restored.calibration, data, logit_N, run_dir, split, tta, more)


def _write(
    fitted: Calibration,
    data: FeatureSet,
    logit_N: Float64[np.ndarray, " N"],
    run_dir: Path,
    split: str,
    tta: bool = False,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write predictions, pictures, and last evaluation_<split>.json; returns its content."""
    probability_N = fitted.probability(logit_N)
    name = f"{split}_tta" if tta else split  # beside the run's own figures
    write_predictions(
        run_dir / f"predictions_{name}.csv", data.videos, probability_N, logit_N
    )
    suffix = "" if name == "test" else f"_{name}"
    _draw(data.labels_N.astype(int), probability_N, fitted.threshold, run_dir, suffix)
    result = {
        "split": split,
        **_figures(fitted, data, probability_N),
        "tta": tta,
        **(more or {}),
    }
    if split in _SEEN:
        result["warnings"].append(_SEEN[split])
    write_json(run_dir / f"evaluation_{name}.json", result)
    return result


def _figures(
    fitted: Calibration, data: FeatureSet, probability_N: Float64[np.ndarray, " N"]
) -> dict[str, Any]:
    """The figures of evaluation_<split>.json."""
    videos, labels_N = data.videos, data.labels_N.astype(int)
    groups = [video.group for video in videos]
    clusters_N = cluster_names(
        [video.name for video in videos], groups, [video.id for video in videos]
    )
    outcomes = [data.store.rows[video.id].outcome for video in videos]
    metrics = evaluation_metrics(labels_N, probability_N, clusters_N, fitted.threshold)
    warnings = metrics.pop("warnings")
    if not any(groups):
        warnings.append(
            "no source groups known: clips of one recording may be in train and test, and "
            "the interval treats clips as independent"
        )
    if fitted.uninformative:
        warnings.append(
            f"the temperature, {fitted.temperature:.1f}, is the largest that is tried: on "
            "validation the scores hardly separate the classes"
        )
    seconds_N = np.array([seconds(outcome) for outcome in outcomes])
    values = slice_values(videos, outcomes)
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
    labels_N: Int[np.ndarray, " N"],
    probability_N: Float64[np.ndarray, " N"],
    threshold: float,
    run_dir: Path,
    suffix: str,
) -> None:
    """Confusion matrix, ROC curve and reliability diagram."""
    area = roc_auc(labels_N, probability_N)
    name = "undefined" if area is None else f"area {area:.3f}"
    figures = {
        "confusion": plots.confusion(labels_N, probability_N, threshold),
        "roc": plots.rates({name: (labels_N, probability_N)}, "roc"),
        "reliability": plots.reliability(labels_N, probability_N),
    }
    for picture, figure in figures.items():
        plots.save(figure, run_dir / f"{picture}{suffix}.png")


def summary(result: Mapping[str, Any]) -> str:
    """An evaluation in a sentence, then its warnings."""

    def percent(value: float | None) -> str:
        return "undefined" if value is None else f"{100 * value:.1f} %"

    auc, ends = result["roc_auc"], result.get("accuracy_ci95")
    between = f"{percent(ends[0])} to {percent(ends[1])}" if ends else "unknown"
    lines = [
        f"{result['split']}{', views averaged' * result['tta']}: accuracy "
        f"{percent(result['accuracy'])} (95 % interval {between}, {result['n']} clips), "
        f"recall violent {percent(result['recall_violent'])}, non-violent "
        f"{percent(result['recall_nonviolent'])}, ROC AUC "
        + ("undefined" if auc is None else f"{auc:.3f}")
    ]
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    if result["collapsed"]:
        lines.append(f"WARNING: CLASS COLLAPSE: {COLLAPSE}")
    return "\n".join(lines)
