"""A finished run restored: its best checkpoint, calibration, and the features it needs.

JAX is imported by `restore` alone, so that prediction can decode meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vd.config import Config, from_json
from vd.data.manifest import Video
from vd.errors import VdError
from vd.features.backbone import COPIES, Backbone, find_backbone
from vd.features.store import (
    FeatureStore,
    features_description,
    fingerprint,
    open_store,
)
from vd.files import read_json
from vd.metrics.calibration import Calibration
from vd.models.plugins import Plugins, recorded_plugin
from vd.training.run_folder import read_config

if TYPE_CHECKING:
    from vd.models.head import Head, Params


@dataclass(frozen=True)
class Restored:
    """A finished run, ready to score."""

    config: Config
    head: "Head"
    params: "Params"
    calibration: Calibration
    dim: int


def restore(run_dir: Path) -> Restored:
    """The parameters of a run's best checkpoint, and its calibration."""
    described = read_config(run_dir)
    config: Config = from_json(Config, described["settings"])
    fitted = read_calibration(run_dir)
    dim = described["preprocessing"]["dim"]
    plugins = Plugins(head=recorded_plugin(described, "head"))
    head = plugins.make_head(config.model)
    return Restored(config, head, _best_params(run_dir, head, dim), fitted, dim)


def _best_params(run_dir: Path, head: "Head", dim: int) -> "Params":
    """Those in weights.npz, or in the best checkpoint of a run without it."""
    import jax

    from vd.devices import own_numerics
    from vd.models.head import init_params
    from vd.training.best_weights import read_best_weights

    with own_numerics():
        like = jax.eval_shape(lambda: init_params(head, dim, jax.random.key(0)))
        if (params := read_best_weights(run_dir, like)) is not None:
            return params
        from vd.training.checkpoints import Checkpoints  # slow to import

        with Checkpoints(run_dir, read_only=True) as checkpoints:
            return checkpoints.restore_best(like)[0]


def read_calibration(run_dir: Path) -> Calibration:
    """What was fitted when the training of a run ended; raises `VdError` before that."""
    path = run_dir / "calibration.json"
    if not path.exists():
        raise VdError(
            f"{run_dir} has no calibration.json, so its training has not ended; run its "
            "command again to go on, then evaluate."
        )
    remedy = "delete it, and the training command fits it again"
    return Calibration(**read_json(path, remedy))


def moved(
    config: Config, run_dir: Path, dataset_path: Path | None, cache_dir: Path | None
) -> Config:
    """The settings of a run with the places where things are now."""
    data = replace(
        config.data,
        dataset_path=dataset_path or config.data.dataset_path,
        cache_dir=cache_dir or config.data.cache_dir,
    )
    backbone = config.backbone
    for copy in (run_dir / name for name in COPIES):
        if copy.exists():
            backbone = replace(backbone, backbone=str(copy))
    return replace(config, data=data, backbone=backbone)


def check_features(backbone: Backbone, run_dir: Path) -> None:
    """Raise `VdError` when `backbone` does not make the features that a run was trained on."""
    trained_on = read_config(run_dir)["identity"]["features"]
    if fingerprint(features_description(backbone)) != trained_on:
        raise VdError(
            f"{run_dir} was trained on other features than {backbone.name} gives in this "
            "version of vd; run its training command with a new --checkpoint-dir, which "
            "extracts and trains again, or put back its copy of the backbone if that has "
            "changed."
        )


def features_of_run(
    videos: Sequence[Video], restored: Restored, config: Config, run_dir: Path
) -> FeatureStore:
    """The store with the features of clips of the run; missing ones are extracted again.

    Raises `VdError` when a file has changed since, or cannot be used any more.
    """
    from vd.data.catalog import identify
    from vd.features.extract import extract

    backbone = find_backbone(config.backbone)
    check_features(backbone, run_dir)
    dim = restored.dim // backbone.vectors
    store = open_store(config.data.cache_dir, backbone, dim)
    if all(video.id in store.rows for video in videos):
        return store
    now = identify(videos, config.data.cache_dir)
    for before, after in zip(videos, now, strict=True):
        if before.id != after.id:
            raise VdError(
                f"{before.path} is missing or is not the file that the run was trained on; "
                "name where the data set or the features are now with --dataset-path or "
                "--cache-dir."
            )
    return extract(videos, config, backbone)[0]
