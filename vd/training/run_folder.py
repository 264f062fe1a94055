"""The run folder: its config.json, the identity of its run, and whether it is finished."""

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vd.config import AdaptConfig, Config, from_json, to_json
from vd.data.manifest import CLASSES, SPLITS, Video, split_rows
from vd.errors import VdError
from vd.files import (
    read_csv,
    read_json,
    remove_orphans,
    write_bytes,
    write_csv,
    write_json,
)
from vd.models.plugins import Plugins

if TYPE_CHECKING:
    import jax

    from vd.data.ledger import Ledger
    from vd.features.backbone import Backbone
    from vd.features.seen import Seen
    from vd.features.store import FeatureStore

FORMAT = 5  # of a run; raised when the same settings would give other numbers or files
# 3 cut videos longer than a clip into other windows, linear paths of 4 read other statistics
_READABLE = 3, 4, FORMAT
_PACKAGES = (
    "vd", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "onnxruntime", "av",
)  # fmt: skip
_OWN_FILES = (
    "splits.csv", "ledger.csv", "backbone.onnx", "backbone.npz", "metrics.jsonl",
    "events.out.tfevents.*", "inner", "adaptation", "checkpoints", "weights.npz",
    "calibration.json", "evaluation_*.json", "predictions_*.csv", "curves.png",
    "confusion*.png", "roc*.png", "reliability*.png", "timeline.png", "report.html",
    "profile", "config.json",
)  # fmt: skip


class Data(NamedTuple):
    """A data set whose features are in the store."""

    given: list[Video]  # as the data set has them
    videos: list[Video]  # with splits
    ledger: "Ledger"
    store: "FeatureStore"
    backbone: "Backbone"
    # by the backbone, of this data set; None: not looked for
    seen: "Seen | None" = None

    def parts(self) -> dict[str, list[Video]]:
        """The usable clips of each split."""
        return parts_of(self.ledger.usable())

    def with_splits(self, videos: Sequence[Video]) -> "Data":
        """The same data with the splits of these videos, which are the usable ones."""
        splits = {video.name: video for video in videos}  # copies have one id
        entries = tuple(
            replace(entry, video=splits.get(entry.video.name, entry.video))
            for entry in self.ledger.entries
        )
        return self._replace(ledger=replace(self.ledger, entries=entries))


def parts_of(videos: Sequence[Video]) -> dict[str, list[Video]]:
    """The videos of each split."""
    return {split: [v for v in videos if v.split == split] for split in SPLITS}


def settings_identity(config: Config) -> dict[str, Any]:
    """The settings' part of a run's identity."""
    return {
        "format": FORMAT,
        "model": to_json(config.model),
        "training": to_json(config.training),
    }


def adaptation_identity(settings: AdaptConfig) -> dict[str, Any]:
    """What the identity of a run with adapted networks has beside."""
    return {"adaptation": to_json(settings)}


def check_folder(run_dir: Path) -> None:
    """Raise `VdError` when the folder exists and is not that of a run."""
    if (run_dir / "config.json").exists() or not run_dir.exists():
        return
    # of a run that was killed as it began, or before the end of its adaptation
    ours = ".lock", "config.json.tmp-", "adaptation", "backbone.npz"
    if not all(path.name.startswith(ours) for path in run_dir.iterdir()):
        raise VdError(
            f"--checkpoint-dir {run_dir} exists but holds no config.json, so it is not a "
            "run folder; name an empty or a new folder."
        )


def check_identity(
    run_dir: Path, identity: Mapping[str, Any], videos: Sequence[Video] = ()
) -> None:
    """Raise `VdError`, listing what differs, when the folder holds another run."""
    if not (run_dir / "config.json").exists():
        return
    values = read_config(run_dir)
    # a setting that the run was trained without has its default there
    settings = settings_identity(from_json(Config, values["settings"]))
    record = values["identity"] | settings | {"format": values["format"]}
    differ = [
        _changes(run_dir, videos)
        if key == "dataset"
        else f"{key} was {before}, now {now}"
        for key, before, now in _differences(record, identity)
    ]
    if differ:
        raise VdError(
            f"--checkpoint-dir {run_dir} holds another run ({'; '.join(differ)}); name "
            "another folder, or start over with --fresh."
        )


def check_same_run(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise `VdError` when this process would train another run than process 0."""
    if differ := _differences(theirs, ours):
        listed = "; ".join(f"{key} is {a} there, {b} here" for key, a, b in differ)
        raise VdError(
            f"process 0 trains another run ({listed}); start all processes with the same "
            "flags, data set and cache."
        )


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Name and both values of what differs; a key that was not there does not count."""
    former = dict(_flat(before))
    return [
        (key, former[key], value)
        for key, value in _flat(now)
        if key in former and former[key] != value
    ]


def is_finished(run_dir: Path) -> bool:
    """Whether training, calibration, both evaluations and the report have left their files."""
    names = (
        "splits.csv", "calibration.json", "evaluation_test.json", "report.html",
    )  # fmt: skip
    checkpoints = (run_dir / "checkpoints").glob("[0-9]*")
    return any(checkpoints) and all((run_dir / name).exists() for name in names)


def clear(run_dir: Path) -> None:
    """Delete what a run wrote in its folder, and nothing else."""
    for pattern in _OWN_FILES:
        for path in run_dir.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_inputs(
    config: Config,
    plugins: Plugins,
    data: Data,
    identity: Mapping[str, Any],
    batch_size: int,
    devices: "Sequence[jax.Device]",
) -> None:
    """Write config.json (once), splits.csv, ledger.csv and a user's own backbone."""
    run_dir, backbone = config.run.checkpoint_dir, data.backbone
    ledger, store = data.ledger, data.store
    engines = Counter(store.rows[video.id].engine for video in ledger.usable())
    remove_orphans(run_dir)
    path = run_dir / "config.json"  # first: it makes this a run folder
    if not path.exists():
        values = {
            "format": FORMAT,
            "identity": dict(identity),
            "settings": {
                f.name: to_json(getattr(config, f.name)) for f in fields(Config)
            },
            "label_map": {name: label for label, name in enumerate(CLASSES)},
            "engine": engines.most_common(1)[0][0],  # that of most features
            "preprocessing": {
                **asdict(backbone.frames),
                "views": list(backbone.views),
                "backbone": backbone.description,
                "dim": store.streams * store.dim,
            },
            "part_files": plugins.files(),
            "batch_size": batch_size,
            "devices": {"count": len(devices), "kind": devices[0].device_kind},
            "ledger": {
                "per_split_and_class": ledger.counts(),
                "loss_gap": ledger.loss_gap(),
            },
            "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "git_revision": _git_revision(),
        }
        write_json(path, values)
    clips = data.parts()
    rows = split_rows(video for split in SPLITS for video in clips[split])
    write_csv(run_dir / "splits.csv", rows)
    write_csv(run_dir / "ledger.csv", ledger.rows())
    if backbone.copy_name is not None:
        write_bytes(run_dir / backbone.copy_name, backbone.content)


def read_config(run_dir: Path) -> dict[str, Any]:
    """The content of a run's config.json; raises `VdError` when it is not one."""
    path = run_dir / "config.json"
    if not path.exists():
        raise VdError(
            f"the run folder {run_dir} holds no config.json; name the folder of a run "
            "that vd train wrote."
        )
    remedy = "put back the file that training wrote, or train the run again"
    values = read_json(path, remedy)
    if values.get("format") not in _READABLE:
        raise VdError(
            f"{path} has format {values.get('format')} and this version of vd reads "
            f"{' and '.join(map(str, _READABLE))}; use the version that wrote it, or train "
            "again."
        )
    return values


def read_settings(run_dir: Path) -> Config:
    """The settings of a run."""
    return from_json(Config, read_config(run_dir)["settings"])


def dataset_fingerprint(videos: Iterable[Video]) -> str:
    """A hash over content, label, split and group of the usable videos; no paths."""
    rows = sorted((v.id, v.label, v.split, v.group) for v in videos)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def videos_of(run_dir: Path, dataset_path: Path) -> list[Video]:
    """The usable videos of a run, from its splits.csv, with their paths in the data set.

    Raises `VdError` when that file has changed since training.
    """
    path = run_dir / "splits.csv"
    # the suffix tells of a table that has moved
    is_table = dataset_path.is_file() or dataset_path.suffix == ".csv"
    root = dataset_path.parent if is_table else dataset_path
    videos = [
        Video(
            path=root / row["path"],
            name=row["path"],
            label=CLASSES.index(row["label"]),
            split=row["split"],
            group=row["group"],
            id=row["id"],
        )
        for row in read_csv(path)
    ]
    if dataset_fingerprint(videos) != read_config(run_dir)["identity"]["dataset"]:
        raise VdError(
            f"{path} is missing, damaged or changed; put back the file that training wrote, "
            "or train the run again."
        )
    return videos


def _changes(run_dir: Path, videos: Sequence[Video]) -> str:
    """How the usable videos differ from those in the run's splits.csv."""
    before = {tuple(row.values()) for row in read_csv(run_dir / "splits.csv")}
    now = {tuple(row.values()) for row in split_rows(videos)}
    paths = sorted({path for path, *_ in before ^ now})
    return (
        f"{len(paths)} clips are new, gone, or have another label, split or group, for "
        f"example {paths[0]!r}"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values with dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _git_revision() -> str | None:
    """The revision of the checkout that vd runs from, if it is one."""
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
