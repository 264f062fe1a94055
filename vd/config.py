"""Every setting once: frozen dataclasses, flat on the command line.

Shapes are written with these letters: N clips, B batch, T frames of a clip, F stored
frames of a video, S streams (RGB, motion), D features of a frame (S × backbone's),
P projected features, H hidden units, V views.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from vd.errors import VdError

EngineName = Literal["auto", "onnxruntime", "jax"]
PresetName = Literal["fast", "default", "best"]


@dataclass(frozen=True)
class DataConfig:
    """Where the videos are, what they are called, and where what is known is kept."""

    dataset_path: Path
    """Folder ROOT/<split>/<class>/, folder ROOT/<class>/, or CSV with path,label[,split,group]."""
    cache_dir: Path = Path("cache")
    """Folder that keeps features, splits, content hashes and outcomes."""
    positive_class: str | None = None
    """Name of the violent class when the names are not the usual ones."""
    group_from: str | None = None
    """Regular expression that finds a clip's group (source video, camera) in its path."""
    max_loss_gap: float = 0.05
    """Largest difference between the classes' shares of lost files (1: any)."""


@dataclass(frozen=True)
class SplitConfig:
    """How videos without splits are divided."""

    splits_file: Path | None = None
    """Where assigned splits are kept (default: a file under CACHE/splits)."""
    split_seed: int = 0
    """Seed of the 70/15/15 assignment; touches nothing else."""
    resplit: bool = False
    """Assign all splits anew instead of keeping those in the splits file."""


@dataclass(frozen=True)
class DecodeConfig:
    """How videos are decoded; touches no number of a video that decodes."""

    decode_timeout_seconds: float = 30.0
    """Deadline of decoding up to 30 s of one video, in seconds."""
    decode_workers: int | None = None
    """Decoding processes (default: one a core)."""
    retry_quarantined: bool = False
    """Decode files again that were quarantined before."""


@dataclass(frozen=True)
class BackboneConfig:
    """The pretrained network that turns frames into features."""

    feature_preset: PresetName = "default"
    """fast: 8-bit network, RGB and motion; default: and the square that moves most; best:
    and each frame mirrored too, from which --spatial-augmentation draws."""
    backbone: str | None = None
    """efficientnet-lite0, -lite1, -lite2, -lite0-int8, or an ONNX file: images to vectors
    (default: the preset's)."""
    backbone_size: int | None = None
    """Side of the ONNX file's input images in pixels (default: from the file)."""
    backbone_mean: float | None = None
    """Subtracted from the 0–255 pixels before an ONNX file (default: its metadata, else 0)."""
    backbone_std: float | None = None
    """Divides them after that (default: the file's metadata, else 1)."""
    engine: EngineName = "auto"
    """What runs the backbone: ONNX Runtime on a CPU, JAX on an accelerator."""


@dataclass(frozen=True)
class ExecutorConfig:
    """Where features are computed; touches no number."""

    executor: Literal["local", "ray"] = "local"
    """This machine, or a Ray cluster that shares its files (needs the extra `ray`)."""
    ray_address: str = "127.0.0.1:6379"
    """HOST:PORT of the cluster's head node; the default is what `ray start --head` opens."""


@dataclass(frozen=True)
class ModelConfig:
    """Projection, bidirectional LSTM, attention pooling, one logit."""

    clip_frames: int = 32
    """Frames of a clip (T) at 8 a second; longer videos are cut into windows."""
    projection_size: int = 256
    """Features of a frame after the linear projection (P); 0: straight into the LSTM."""
    hidden_size: int = 128
    """Hidden units of each LSTM direction (H)."""
    dropout_rate: float = 0.3
    """Share of units dropped after the projection and after the pooling."""
    mixed_precision: bool = True
    """Products and activations in bfloat16; parameters and loss stay float32."""


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation; the defaults are those of the recipe's `optimized` column."""

    epochs: int = 150
    """Passes over the training split; the cosine ends with the last."""
    batch_size: int = 64
    """Clips a step, over all devices."""
    learning_rate: float = 0.0005
    """Peak of the warmup cosine schedule."""
    warmup_epochs: int = 5
    """Epochs of linear warmup."""
    weight_decay: float = 0.0001
    """AdamW's decoupled decay, on matrices only."""
    grad_clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down (0: never)."""
    focal_alpha: float = 0.25
    """Weight of the violent class in the focal loss; the other's is 1 − alpha."""
    focal_gamma: float = 2.0
    """Focusing exponent of the focal loss; 0 is weighted cross-entropy."""
    label_smoothing: float = 0.1
    """ε of the targets y(1 − ε) + ε/2."""
    augmentation: bool = True
    """Temporal jitter, random windows and views; off: the plain middle window."""
    temporal_jitter: float = 0.1
    """Stretch and shift of a clip's time axis, as a share of its length."""
    spatial_augmentation: bool = True
    """Draw one of the stored views each time; plain alone, or with preset best mirrored."""
    early_stopping_patience: int = 15
    """Epochs without a better value before training stops."""
    early_stopping_metric: Literal[
        "val_loss", "val_accuracy", "val_balanced_accuracy", "val_roc_auc"
    ] = "val_loss"
    """Validation metric that chooses the best checkpoint."""
    early_stopping_min_delta: float = 0.0
    """Smallest change that counts as better."""
    seed: int = 0
    """Seed of initialisation, order, dropout and augmentation."""


@dataclass(frozen=True)
class RunConfig:
    """Where a run is kept and what it runs on; no part of its identity."""

    checkpoint_dir: Path = Path("runs/run")
    """The run folder."""
    devices: int | None = None
    """Devices of each process to train on (default: all accelerators, or one a CPU core)."""
    coordinator_address: str | None = None
    """HOST:PORT on the machine of process 0, to train with several processes (docs/hosts.md);
    auto: this and the next two from Slurm or Kubernetes."""
    num_processes: int | None = None
    """Processes that train together."""
    process_id: int | None = None
    """Number of this process, from 0; process 0 leads."""
    profile: bool = False
    """Trace the third to the twelfth step with JAX's profiler, into the run's profile/."""
    fresh: bool = False
    """Delete an earlier run in the folder and start over."""


@dataclass(frozen=True)
class Config:
    """One experiment. Data and features enter a run's identity by fingerprint."""

    data: DataConfig
    splits: SplitConfig = field(default_factory=SplitConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    run: RunConfig = field(default_factory=RunConfig)


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; macOS has no affinity
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def to_json(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values; paths become absolute strings."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {
                f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)
            }
        return str(value.absolute()) if isinstance(value, Path) else value

    result: dict[str, Any] = plain(config)
    return result


def from_json(cls: type, values: dict[str, Any]) -> Any:
    """The config dataclass `cls` from `to_json`'s values.

    Raises `VdError` for an unknown key, and for a value of another type.
    """
    known = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise VdError(
            f"config.json has the unknown setting {unknown[0]!r}; read the run with the "
            "version of vd that wrote it."
        )
    made = {}
    for name, value in values.items():
        kind = known[name].type
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            value = from_json(kind, value)
        elif value is not None and kind in (Path, Path | None):
            value = Path(value)
        elif not _fits(value, kind):
            raise VdError(f"config.json: {value!r} cannot be the setting {name}.")
        made[name] = value
    return cls(**made)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is one of a field's type: a class, a union or a Literal."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    kinds = get_args(kind) or (kind,)
    if isinstance(value, bool):  # an int to Python
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)


_BOUNDS: dict[str, tuple[float, float]] = {
    "max_loss_gap": (0, 1),
    "backbone_size": (1, 4096),
    "backbone_mean": (-1_000_000, 1_000_000),
    "decode_workers": (1, 4096),
    "clip_frames": (1, 100_000),
    "projection_size": (0, 8192),
    "hidden_size": (1, 4096),
    "dropout_rate": (0, 0.99),
    "epochs": (1, 1_000_000),
    "batch_size": (1, 1_000_000),
    "warmup_epochs": (0, 1_000_000),
    "weight_decay": (0, 10),
    "grad_clip_norm": (0, 1_000_000_000),
    "focal_alpha": (0, 1),
    "focal_gamma": (0, 100),
    "label_smoothing": (0, 0.99),
    "temporal_jitter": (0, 0.5),
    "early_stopping_patience": (1, 1_000_000),
    "early_stopping_min_delta": (0, 1_000_000),
    "split_seed": (0, 2**32 - 1),
    "seed": (0, 2**32 - 1),
    "render_seed": (0, 2**32 - 1),
    "devices": (1, 4096),
    "num_processes": (1, 4096),
    "process_id": (0, 4095),
}
_POSITIVE = (
    "learning_rate",
    "decode_timeout_seconds",
    "backbone_std",
)


def validate(config: Any) -> None:
    """Raise a `VdError` that names the first flag whose value is outside its range."""
    for f in dataclasses.fields(config):
        value, flag = getattr(config, f.name), "--" + f.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            validate(value)
        elif value is None:
            continue
        elif f.name in _BOUNDS:
            low, high = _BOUNDS[f.name]
            if not low <= value <= high:
                raise VdError(f"{flag} is {value}; give a value from {low} to {high}.")
        elif f.name in _POSITIVE and not 0 < value < float("inf"):
            raise VdError(f"{flag} is {value}; give a finite value above 0.")
