"""A finished run restored: its best checkpoint, calibration, and the features it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vd.config import Config, from_json
from vd.data.hashes import identify
from vd.data.ledger import Ledger
from vd.data.manifest import CLASSES, Video
from vd.errors import VdError, damage
from vd.evaluation.operating_points import STRICT
from vd.features.backbone import Backbone, find_backbone
from vd.features.compute import features_description, open_store
from vd.features.extract import extract
from vd.features.store import FeatureStore, fingerprint
from vd.files import read_json
from vd.metrics import calibration
from vd.models.head import Head, Params, init_params
from vd.models.plugins import Plugins, recorded_plugin
from vd.training.checkpoints import Checkpoints
from vd.training.run_folder import read_config


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
    own head cannot be imported.
    """
    import jax

    described = read_config(run_dir)
    if described.get("label_map") != {name: i for i, name in enumerate(CLASSES)}:
        raise VdError(
            f"{run_dir / 'config.json'} has the label map {described.get('label_map')}, by "
            "which this version of vd does not score; put back the file that training wrote."
        )
    config: Config = from_json(Config, described["settings"])
    path = run_dir / "calibration.json"
    if not path.exists():
        raise VdError(
            f"{run_dir} lacks calibration.json, so its training has not ended; run its "
            "command again to go on, then evaluate."
        )
    dim = described["preprocessing"]["dim"]
    plugins = Plugins(head=recorded_plugin(described, "head"))
    head = plugins.make_head(config.model)
    like = jax.eval_shape(lambda: init_params(head, dim, jax.random.key(0)))
    with Checkpoints(run_dir, read_only=True) as checkpoints:
        params, _ = checkpoints.restore_best(like)
    return Restored(config, head, params, read_calibration(run_dir), dim)


def read_calibration(run_dir: Path) -> calibration.Calibration:
    """The run's calibration.json, checked against what validation and test were told."""
    path = run_dir / "calibration.json"
    remedy = "delete it, and the training command fits it again"
    values = read_json(path, remedy)
    try:
        fitted = calibration.Calibration(**values)
    except (TypeError, ValueError) as error:
        raise VdError(f"{path} is damaged ({damage(error)}); {remedy}.") from error
    for split in ("val", "test"):
        written = run_dir / f"evaluation_{split}.json"
        if not written.exists():
            continue
        told = read_json(written, "delete it, and the training command writes it again")
        for name in ("temperature", "threshold", "false_alarm_threshold"):
            if not isinstance(told, dict) or _told(told, name) != values.get(name):
                raise VdError(
                    f"{path} has another {name} than {written.name}; {remedy}."
                )
    return fitted


def _told(evaluation: Mapping[str, Any], name: str) -> Any:
    """A value of calibration.json, as an evaluation has it."""
    if name != "false_alarm_threshold":
        return evaluation.get(name)
    point = (evaluation.get("operating_points") or {}).get(STRICT)
    return point and point.get("threshold")


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


def features_of_run(
    videos: Sequence[Video], restored: Restored, config: Config, run_dir: Path
) -> FeatureStore:
    """The store with the features of clips of the run; what it lacks is extracted again."""
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


def features_of_others(
    videos: Sequence[Video], config: Config, run_dir: Path
) -> tuple[FeatureStore, Ledger]:
    """The store with the features of any clips, and their ledger."""
    check_features(find_backbone(config.backbone), run_dir)
    return extract(videos, config)
