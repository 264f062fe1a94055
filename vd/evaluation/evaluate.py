"""Evaluation: metrics, slices, predictions and pictures of one part of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from matplotlib.figure import Figure
from scipy.special import expit

from vd import plots
from vd.config import Config, EventConfig
from vd.data.manifest import SPLITS, Video
from vd.errors import VdError
from vd.evaluation.predictions import Predictions, to_rows
from vd.evaluation.restore import Restored, features_of_run, moved, restore
from vd.evaluation.slices import slices
from vd.features.backbone import find_backbone
from vd.features.sampling import window_length
from vd.features.seen import check_unseen, find_seen
from vd.files import write_csv, write_json
from vd.metrics.binary import (
    COLLAPSE,
    METRICS,
    evaluation_metrics,
    shown,
)
from vd.metrics.calibration import FALSE_ALARMS, Calibration, fit, with_events
from vd.metrics.intervals import share
from vd.models.head import Head, Params
from vd.models.scoring import peaks, score, sliding_logits
from vd.training.best_weights import write_best_weights
from vd.training.feature_set import FeatureSet
from vd.training.refit import InnerFolds, parts_to_use, refits
from vd.training.run_folder import videos_of

_SECONDS_AN_HOUR = 3600
_TRAINED = "the model was trained on most of these clips: on new ones it is worse"
_INNER = (
    "each clip was scored by a model of other inner folds; length of training, temperature "
    "and threshold were chosen on these logits"
)
_SEEN = {
    "train": _TRAINED,
    "val": "the best epoch, temperature and threshold were chosen on these clips: on new "
    "ones the model is worse",
    "all": _TRAINED,
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
    features have moved; missing features are extracted again. Raises `VdError` for clips
    that chose the run or that its backbone has seen.
    """
    restored = restore(run_dir)
    config = moved(restored.config, run_dir, dataset_path, cache_dir)
    everything = videos_of(run_dir, config.data.dataset_path)
    if dataset_path is not None and not any(v.path.exists() for v in everything):
        raise VdError(
            f"--dataset-path {dataset_path} has none of the clips of {run_dir}, or does not "
            "exist; leave it out to use the stored features, name the place where the clips "
            "are now, or evaluate another data set with --on."
        )
    trained = [video for video in everything if video.split in ("train", "val")]
    if split == "val" and refits(config, trained):
        figures = "evaluation_val.json has the figures of its inner folds."
        if not (run_dir / "evaluation_val.json").exists():
            figures = "it had too few groups for inner folds; name another --split."
        raise VdError(
            f"--split val: {run_dir} was trained on its validation clips too; {figures}"
        )
    videos = [video for video in everything if split in (video.split, "all")]
    _check_backbone(config, everything, videos)
    store = features_of_run(videos, restored, config, run_dir)
    return evaluate_split(restored, FeatureSet(videos, store), run_dir, split, tta)


def _check_backbone(
    config: Config, everything: Sequence[Video], videos: Sequence[Video]
) -> None:
    """Raise `VdError` when the backbone has seen clips that are no training clips."""
    backbone = find_backbone(config.backbone)
    parts = {s: [v for v in everything if v.split == s] for s in SPLITS}
    chosen = {video.name for video in videos}
    judging = {
        split: [video for video in part if video.name in chosen]
        for split, part in parts_to_use(config, parts).items()
        if split != "train"
    }
    for seen in find_seen(backbone.seen, everything, config.data, config.decode):
        check_unseen(backbone.name, seen, judging)


def evaluate_trained(
    config: Config,
    head: Head,
    params: Params,
    sets: Mapping[str, FeatureSet],
    even_logit: float,
    inner: InnerFolds | None = None,
) -> dict[str, dict[str, Any]]:
    """Calibrate a trained model and evaluate validation, then test, by split.

    Writes weights.npz, calibration.json and the files of both, with pictures of test alone.
    `even_logit` is the loss's own threshold. With `inner` its logits of the training clips,
    each out of its fold, are validation.
    """
    run_dir = config.run.checkpoint_dir
    val_set = sets.get("val", sets["train"])
    more: dict[str, Any] = {"tta": False}
    if inner is not None:
        folds = len(np.unique(inner.fold_N))
        more |= {"inner_folds": folds, "epochs": inner.epochs, "losses": inner.losses}
    logit_N, fitted = _calibrate(config, head, params, sets, even_logit, inner)
    write_best_weights(run_dir, params)
    write_json(run_dir / "calibration.json", asdict(fitted))
    restored = Restored(config, head, params, fitted, val_set.dim)
    results = {}
    if len(logit_N):
        results["val"] = write_evaluation(
            fitted, val_set, logit_N, run_dir, "val", "val", more, draw=False
        )
    if "test" in sets:
        results["test"] = evaluate_split(restored, sets["test"], run_dir, "test")
    return results


def _calibrate(
    config: Config,
    head: Head,
    params: Params,
    sets: Mapping[str, FeatureSet],
    even_logit: float,
    inner: InnerFolds | None,
) -> tuple[Float64[np.ndarray, " N"], Calibration]:
    """Validation's logits, or those of the inner folds, and what is fitted on them."""
    length = window_length(sets["train"].seconds_N, config.model.clip_frames)
    stride = EventConfig.stride_seconds
    windows: dict[str, Any] = {"window_seconds": length, "stride_seconds": stride}
    if inner is None:
        data, source = sets["val"], "validation"
        logit_N = score(head, params, data.in_order())
        peak_N = peaks(sliding_logits(head, params, data.in_time(), length, stride))
    else:
        data, source = sets["train"], "inner folds"
        logit_N, peak_N = inner.logit_N, inner.peak_logit_N
    if not len(logit_N):
        even = float(expit(even_logit))
        return logit_N, Calibration(1.0, even, "the loss's own threshold", **windows)
    labels_N = data.labels_N.astype(int)
    fitted = fit(logit_N, labels_N, even_logit, source)
    fitted = with_events(fitted, peak_N, labels_N, data.seconds_N, source)
    return logit_N, replace(fitted, **windows)


def evaluate_split(
    restored: Restored,
    data: FeatureSet,
    run_dir: Path,
    split: str,
    tta: bool = False,
    more: Mapping[str, Any] | None = None,
    draw: bool = True,
) -> dict[str, Any]:
    """Score `data`, then `write_evaluation`; raises `VdError` for `tta` of a single view."""
    if tta and data.views == 1:
        raise VdError(
            f"--tta averages over views, and the features of {run_dir} have only one; leave "
            "it out, or train with --feature-preset best."
        )
    clips = data.in_order(data.views if tta else 1)
    logit_N = score(restored.head, restored.params, clips)
    name = f"{split}_tta" if tta else split  # beside the run's own figures
    more = {"tta": tta, **(more or {})}
    return write_evaluation(
        restored.calibration, data, logit_N, run_dir, split, name, more, draw
    )


def write_evaluation(
    fitted: Calibration,
    data: FeatureSet,
    logit_N: Float64[np.ndarray, " N"],
    run_dir: Path,
    split: str,
    name: str,
    more: Mapping[str, Any],
    draw: bool = True,
) -> dict[str, Any]:
    """Write predictions, pictures, and last evaluation_<name>.json; returns its content.

    `more` are further keys of it. `draw`: the pictures.
    """
    predictions = predicted(fitted, data, logit_N)
    write_csv(run_dir / f"predictions_{name}.csv", to_rows(predictions))
    figures = _figures(fitted, data, predictions)
    result = {"split": split, **figures, **more}
    if split in _SEEN:
        seen = _INNER if "inner_folds" in more else _SEEN[split]
        result["warnings"].append(seen)
    suffix = "" if name == "test" else f"_{name}"
    title = f"Confusion at threshold {fitted.threshold:.3f}"
    area = f"area {shown('roc_auc', result['roc_auc'])}"
    if draw:
        for picture, figure in pictures({area: predictions}, title).items():
            plots.save(figure, run_dir / f"{picture}{suffix}.png")
    write_json(run_dir / f"evaluation_{name}.json", result)
    return result


def predicted(
    fitted: Calibration, data: FeatureSet, logit_N: Float64[np.ndarray, " N"]
) -> Predictions:
    """What the logits of some clips become by a calibration; of no fold."""
    labels_N, probability_N = data.labels_N.astype(int), fitted.probability(logit_N)
    predicted_N, fold_N = probability_N >= fitted.threshold, np.full(len(labels_N), -1)
    names, groups, ids = (
        np.array([getattr(video, key) for video in data.videos], object)
        for key in ("name", "group", "id")
    )
    return Predictions(
        names, groups, ids, labels_N, probability_N, logit_N, predicted_N, fold_N
    )


def pictures(tested: Mapping[str, Predictions], title: str) -> dict[str, Figure]:
    """Confusion matrix, ROC with a curve for each name, and reliability of tested clips."""
    clips = zip(*(one.tested for one in tested.values()), strict=True)
    labels_N, probability_N, predicted_N = map(np.concatenate, clips)
    curves = {name: (one.labels_N, one.probability_N) for name, one in tested.items()}
    return {
        "confusion": plots.confusion(labels_N, predicted_N, title),
        "roc": plots.roc(curves),
        "reliability": plots.reliability(labels_N, probability_N),
    }


def _figures(
    fitted: Calibration, data: FeatureSet, predictions: Predictions
) -> dict[str, Any]:
    """The figures of evaluation_<split>.json."""
    labels_N, probability_N, _ = predictions.tested
    clusters_N, grouped = predictions.cluster_N, predictions.grouped
    outcomes = [data.store.rows[video.id].outcome for video in data.videos]
    metrics = evaluation_metrics(
        labels_N, probability_N, clusters_N, fitted.threshold, grouped
    )
    seconds_N = np.array([outcome.duration for outcome in outcomes])
    return {
        **metrics,
        "threshold": fitted.threshold,
        "threshold_source": fitted.threshold_source,
        "temperature": fitted.temperature,
        "groups": len(np.unique(clusters_N)) if grouped else None,
        "nonviolent_hours": float(seconds_N[labels_N == 0].sum() / _SECONDS_AN_HOUR),
        "operating_points": operating_points(predictions, seconds_N, fitted),
        "slices": slices(data.videos, outcomes, predictions),
    }


def operating_points(
    predictions: Predictions, seconds_N: Float[np.ndarray, " N"], fitted: Calibration
) -> dict[str, dict[str, Any] | None]:
    """Figures at each threshold that was fitted on validation; None where none was.

    `seconds_N` is the length of each clip, 0 where unknown: such a clip counts in no
    figure per hour. A clip that is predicted to be violent is one alarm.
    """
    thresholds = {
        "best_balanced_accuracy": fitted.threshold,
        f"false_alarms_{100 * FALSE_ALARMS:.0f}_percent": fitted.false_alarm_threshold,
    }
    violent_N, group_N = predictions.labels_N == 1, predictions.cluster_N
    hours = np.where(~violent_N, seconds_N / _SECONDS_AN_HOUR, 0).sum()
    points: dict[str, dict[str, Any] | None] = dict.fromkeys(thresholds)
    for name, threshold in thresholds.items():
        if threshold is None:
            continue
        alarm_N = predictions.probability_N >= threshold
        recalled, recalled_ci95 = share(alarm_N, violent_N, group_N)
        false, false_ci95 = share(alarm_N, ~violent_N, group_N)
        counted = (alarm_N & ~violent_N & (seconds_N > 0)).sum()
        points[name] = {
            "threshold": threshold,
            "recall_violent": recalled,
            "recall_violent_ci95": recalled_ci95,
            "false_alarm_share": false,
            "false_alarm_share_ci95": false_ci95,
            "false_alarms_per_hour": float(counted / hours) if hours else None,
        }
    return points


def summary(result: Mapping[str, Any]) -> str:
    """An evaluation in a sentence."""
    between = shown("accuracy", result.get("accuracy_ci95"))
    figures = [
        f"{METRICS[name].label} {shown(name, result[name])}"
        for name in ("recall_violent", "recall_nonviolent", "roc_auc")
    ]
    how = ", views averaged" if result.get("tta") else ""
    if "inner_folds" in result:
        how = f" by {result['inner_folds']} inner folds"
    text = (
        f"{result['split']}{how}: accuracy "
        f"{shown('accuracy', result['accuracy'])} (95 % interval {between}, "
        f"{result['n']} clips), {', '.join(figures)}"
    )
    if result["collapsed"]:
        text += f"\nWARNING: CLASS COLLAPSE: {COLLAPSE}"
    return text
