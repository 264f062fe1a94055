"""Evaluation of a restored checkpoint on one split: metrics, predictions, pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vd import calibration, plots
from vd.atomic import read_json, write_json
from vd.config import Config
from vd.errors import VdError
from vd.features.backbone import Backbone, find_backbone
from vd.features.compute import features_description, open_store
from vd.features.extract import extract
from vd.features.store import FeatureStore, fingerprint
from vd.metrics import evaluation_metrics
from vd.model import Head, Params, init_params
from vd.scoring import score
from vd.tables import write_csv
from vd.training.batches import FeatureSet
from vd.training.checkpoints import Checkpoints
from vd.training.parts import import_parts
from vd.training.run_folder import read_config, read_settings, videos_of
from vd.videos.hashes import identify
from vd.videos.manifest import CLASSES, Video


@dataclass(frozen=True)
class Restored:
    """A finished run, ready to score."""

    config: Config
    head: Head
    params: Params
    calibration: calibration.Calibration
    dim: int


def restore(run_dir: Path) -> Restored:
    """The best checkpoint of a run and its calibration.

    Raises `VdError` when training has not ended, the checkpoint is damaged, or a user's
    own head or loss is missing.
    """
    import jax

    described = read_config(run_dir)
    config = read_settings(run_dir)
    path = run_dir / "calibration.json"
    if not path.exists():
        raise VdError(
            f"{run_dir} lacks calibration.json, so its training has not ended; run its "
            "command again to go on, then evaluate."
        )
    dim = described["preprocessing"]["dim"]
    head = import_parts(described).make_head(config.model)
    like = jax.eval_shape(lambda: init_params(head, dim, jax.random.key(0)))
    with Checkpoints(run_dir, read_only=True) as checkpoints:
        params, _ = checkpoints.restore_best(like)
    remedy = "delete it, and the training command fits it again"
    values = read_json(path, remedy)
    try:
        fitted = calibration.Calibration(**values)
    except (TypeError, ValueError) as error:
        raise VdError(f"{path} is damaged ({error}); {remedy}.") from error
    written = run_dir / "evaluation_val.json"
    if written.exists():
        told = read_json(written, "delete it, and the training command writes it again")
        for name in ("temperature", "threshold"):
            if told.get(name) != values[name]:
                raise VdError(
                    f"{path} has another {name} than {written.name}; {remedy}."
                )
    return Restored(config, head, params, fitted, dim)


def evaluate(
    run_dir: Path,
    split: str = "test",
    tta: bool = False,
    dataset_path: Path | None = None,
    cache_dir: Path | None = None,
) -> dict[str, Any]:
    """Restore a run, evaluate one of its splits, and write the files of the run folder.

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
    videos = [video for video in everything if video.split == split]
    if not videos:
        raise VdError(
            f"--split {split}: {run_dir} has no such part; use train, val or test."
        )
    store = _features(videos, restored, config, run_dir)
    return evaluate_split(restored, FeatureSet(videos, store), run_dir, split, tta)


def moved(
    config: Config, run_dir: Path, dataset_path: Path | None, cache_dir: Path | None
) -> Config:
    """The settings of a run with the places where things are now."""
    data = replace(
        config.data,
        dataset_path=dataset_path or config.data.dataset_path,
        cache_dir=cache_dir or config.data.cache_dir,
    )
    backbone, copy = config.backbone, run_dir / "backbone.onnx"
    if copy.exists():
        backbone = replace(backbone, backbone=str(copy))
    return replace(config, data=data, backbone=backbone)


def check_features(backbone: Backbone, run_dir: Path) -> None:
    """Raise `VdError` when `backbone` does not make the features that a run was trained on."""
    made = fingerprint(features_description(backbone))
    if made != read_config(run_dir)["identity"]["features"]:
        raise VdError(
            f"{run_dir} was trained on other features than {backbone.name} gives now; put "
            "back its backbone.onnx and config.json, or use the version of vd that "
            "trained it."
        )


def _features(
    videos: Sequence[Video], restored: Restored, config: Config, run_dir: Path
) -> FeatureStore:
    """The store that holds the features of `videos`; what it lacks is extracted again."""
    backbone = find_backbone(config.backbone)
    check_features(backbone, run_dir)
    dim = restored.dim // len(backbone.streams)
    store = open_store(config.data.cache_dir, backbone, dim)
    if all(video.id in store.rows for video in videos):
        return store
    now = identify(videos, config.data.cache_dir / "hashes.csv")
    for before, after in zip(videos, now, strict=True):
        if before.id != after.id:
            raise VdError(
                f"{before.path} is missing or is not the file that the run was trained on; "
                "say with --dataset-path or --cache-dir where data set or features are."
            )
    return extract(videos, config)[0]


def evaluate_split(
    restored: Restored, data: FeatureSet, run_dir: Path, split: str, tta: bool = False
) -> dict[str, Any]:
    """Score `data` and write predictions, pictures, and last evaluation_<split>.json."""
    if tta and data.views == 1:
        raise VdError(
            f"--tta averages over views, and the features of {run_dir} have one only; leave "
            "it out, or train with --feature-preset best."
        )
    views = range(data.views if tta else 1)
    clips = ([data.read(i, view) for view in views] for i in range(len(data)))
    logit_N = score(restored.head, restored.params, clips)
    fitted = restored.calibration
    probability_N = fitted.probability(logit_N)
    labels_N = data.labels_N.astype(int)
    groups = [video.group or video.id for video in data.videos]
    known = any(video.group for video in data.videos)
    metrics = evaluation_metrics(
        labels_N, probability_N, np.array(groups), fitted.threshold
    )
    name = f"{split}_tta" if tta else split  # beside the run's own figures
    write_predictions(
        run_dir / f"predictions_{name}.csv", data.videos, probability_N, logit_N
    )
    suffix = "" if name == "test" else f"_{name}"
    figures = {
        "confusion": plots.confusion(labels_N, probability_N, fitted.threshold),
        "roc": plots.roc(labels_N, probability_N),
        "reliability": plots.reliability(labels_N, probability_N),
    }
    for picture, figure in figures.items():
        plots.save(figure, run_dir / f"{picture}{suffix}.png")
    result = {
        "split": split,
        **metrics,
        "threshold": fitted.threshold,
        "threshold_source": fitted.threshold_source,
        "temperature": fitted.temperature,
        "tta": tta,
        "groups": len(set(groups)) if known else None,
    }
    write_json(run_dir / f"evaluation_{name}.json", result)
    return result


def fit_calibration(restored: Restored, val_set: FeatureSet, run_dir: Path) -> Restored:
    """Fit temperature and threshold on validation and write calibration.json."""
    clips = ([val_set.read(i, 0)] for i in range(len(val_set)))
    logit_N = score(restored.head, restored.params, clips)
    fitted = calibration.fit(logit_N, val_set.labels_N.astype(int))
    write_json(run_dir / "calibration.json", asdict(fitted))
    return replace(restored, calibration=fitted)


def summary(result: dict[str, Any]) -> str:
    """An evaluation in words."""
    low, high = result["accuracy_ci95"]

    def percent(value: float | None) -> str:
        return "undefined" if value is None else f"{100 * value:.1f} %"

    auc = result["roc_auc"]
    text = (
        f"{result['split']}: accuracy {percent(result['accuracy'])} "
        f"(95 % interval {percent(low)} to {percent(high)}, {result['n']} clips), "
        f"recall violent {percent(result['recall_violent'])}, non-violent "
        f"{percent(result['recall_nonviolent'])}, ROC AUC "
        + ("undefined" if auc is None else f"{auc:.3f}")
    )
    if result["groups"] is None and result["split"] == "test":
        text += (
            "\nno source groups known: clips of one recording may be in train and test, "
            "and the interval treats clips as independent"
        )
    if result["collapsed"]:
        text += "\nWARNING: CLASS COLLAPSE: nearly all predictions are one class, or a recall is under 20 %"
    return text


def write_predictions(
    path: Path, videos: Sequence[Video], probability_N: np.ndarray, logit_N: np.ndarray
) -> None:
    """predictions_<split>.csv; decimals that read back to the same float64."""
    rows = [
        {
            "path": video.name,
            "label": CLASSES[video.label],
            "group": video.group,
            "probability": repr(float(probability)),
            "logit": repr(float(logit)),
        }
        for video, probability, logit in zip(
            videos, probability_N, logit_N, strict=True
        )
    ]
    write_csv(path, rows)
