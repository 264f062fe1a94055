"""Every setting once: frozen dataclasses, flat on the command line.

Shapes are written with these letters: N clips, B batch, T frames of a clip, F stored
frames of a video, S streams (RGB, motion), K vectors of features of a frame (a stream for
each network that reads it), D features of a frame (K × backbone's),
P projected features, H hidden units, V views.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    get_args,
    get_type_hints,
)

import tyro

from vd.errors import VdError

PRETRAINED = Path(__file__).with_name("pretrained")  # the run that comes with vd

EngineName = Literal["auto", "onnxruntime", "jax"]
PresetName = Literal["fast", "default", "best"]
StreamName = Literal["rgb", "motion", "square"]


class Between(NamedTuple):
    """The least and the greatest value that a setting may have."""

    low: float
    high: float


Share = Annotated[float, Between(0, 1)]
Count = Annotated[int, Between(1, 1_000_000)]
Processes = Annotated[int, Between(1, 4096)]
Positive = Annotated[float, Between(1e-30, 1e30)]
Seed = Annotated[int, Between(0, 2**32 - 1)]

_T = TypeVar("_T")
# a setting of the base class that a command fixes: neither shown nor taken as a flag
_NoFlag = Annotated[_T, tyro.conf.Fixed, tyro.conf.Suppress]


class Settings:
    """Settings in a dataclass whose fields are checked when it is made."""

    def __post_init__(self) -> None:
        """Raise `VdError` for the first field that is outside the bounds of its type."""
        for name, bounds in _bounds(type(self)).items():
            value = getattr(self, name)
            known = isinstance(value, int | float)  # not None, nor traced by JAX
            if known and not bounds.low <= value <= bounds.high:
                raise VdError(
                    f"--{name.replace('_', '-')} is {value}; give a value from "
                    f"{bounds.low} to {bounds.high}."
                )


def _bounds(cls: type) -> dict[str, Between]:
    """The bounds in the annotations of a dataclass, by field."""
    return {
        name: bounds
        for name, hint in get_type_hints(cls, include_extras=True).items()
        for part in (hint, *get_args(hint))  # alone, or in a union with None
        for bounds in getattr(part, "__metadata__", ())
        if isinstance(bounds, Between)
    }


@dataclass(frozen=True)
class DataConfig(Settings):
    """Where the videos are, what they are called, and where what is known is kept."""

    dataset_path: Path
    """Folder ROOT/<class>/, with folders of splits above or below the classes or none, or CSV
    with path,label[,split,group]."""
    cache_dir: Path = Path("cache")
    """Folder that keeps features, splits, content hashes and outcomes."""
    positive_class: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Name of a violent class when the names are not the usual ones; may be repeated."""
    group_from: str | None = None
    """Regular expression that finds a clip's group (source video, camera) in its path."""
    max_loss_gap: Share = 0.05
    """Largest difference between the classes' shares of lost files (1: any)."""


@dataclass(frozen=True)
class SplitConfig(Settings):
    """How videos without splits are divided."""

    splits_file: Path | None = None
    """Where assigned splits are kept; None: in a file under CACHE/splits."""
    split_seed: Seed = 0
    """Seed of the 70/15/15 assignment; touches nothing else."""
    resplit: bool = False
    """Assign all splits again instead of keeping those in the splits file."""


@dataclass(frozen=True)
class DecodeConfig(Settings):
    """How videos are decoded; touches no number of a video that decodes."""

    decode_timeout_seconds: Positive = 30.0
    """Deadline of decoding up to 30 s of one video, in seconds; of a file that is predicted:
    for a decoder that gives no frame."""
    decode_workers: Processes | None = None
    """Decoding processes; None: one a core."""
    retry_quarantined: bool = False
    """Decode files again that were quarantined before."""


@dataclass(frozen=True)
class BackboneConfig(Settings):
    """The pretrained network that turns frames into features."""

    feature_preset: PresetName = "default"
    """fast: motion and the square that moves most, 160 pixels, 8-bit network; default: RGB too,
    224 pixels, floats; best: each frame mirrored too, from which --spatial-augmentation draws."""
    backbone: str | None = None
    """efficientnet-lite0, -lite1, -lite2, -lite0-int8, the .npz file of an adapted network
    (with its own streams), or an ONNX file that maps images to vectors; None: the preset's."""
    backbone_size: Annotated[int, Between(1, 4096)] | None = None
    """Side of the network's images in pixels, not for .npz files; None: the preset's or the
    network's own, or from the ONNX file."""
    backbone_mean: Annotated[float, Between(-1e6, 1e6)] | None = None
    """Subtracted from the 0–255 pixels before an ONNX file; None: its metadata, else 0."""
    backbone_std: Positive | None = None
    """Divides them after that; None: the file's metadata, else 1."""
    engine: EngineName = "auto"
    """What runs the backbone: ONNX Runtime on a CPU, JAX on an accelerator."""


@dataclass(frozen=True)
class AdaptConfig(Settings):
    """What of the backbone is adapted, and to which images."""

    streams: tuple[StreamName, ...] = ("motion",)
    """A network is adapted to the images of each; all cost the same."""
    frozen_streams: tuple[StreamName, ...] = ("square",)
    """What the pretrained network sees on these is read beside them, by a linear probe."""
    size: Annotated[int, Between(32, 600)] = 160
    """Side of the images in pixels."""
    fixed_blocks: Annotated[int, Between(0, 17)] = 6
    """Of the network's 18 blocks (the stem is the first, the head's convolution the last),
    how many stay as they were."""
    int8: bool = False
    """Compute features in 8-bit integers."""

    def __post_init__(self) -> None:
        """Raise `VdError` for no stream to adapt to, or for one that is named twice."""
        super().__post_init__()
        for name in "streams", "frozen_streams":
            streams = getattr(self, name)
            if len(set(streams)) != len(streams):
                flag = f"--{name.replace('_', '-')}"
                raise VdError(f"{flag} {' '.join(streams)}: name each stream once.")
        if not self.streams:
            raise VdError("--streams has no stream; name one to adapt to.")


@dataclass(frozen=True)
class ExecutorConfig(Settings):
    """Where features are computed; touches no number."""

    executor: Literal["local", "ray"] = "local"
    """This machine, or a Ray cluster that shares its files (needs the extra `ray`)."""
    ray_address: str = "127.0.0.1:6379"
    """HOST:PORT of the cluster's head node, as `ray start --head` opens it."""


@dataclass(frozen=True)
class EventConfig(Settings):
    """When violence over time is an event."""

    window_seconds: Positive | None = None
    """Length of the windows that slide over a video, at most --clip-frames at 8 a second;
    None: that of the median training clip."""
    stride_seconds: Annotated[float, Between(0.01, 1e6)] = 0.25
    """Seconds from a window to the next."""
    threshold: Share | None = None
    """Probability of a window at which an event opens; None: the run's event threshold,
    which 5 % of the non-violent validation clips reach. It finds events, and so labels longer
    videos; the label of one up to a clip's length is by the run's own threshold."""
    end_threshold: Share | None = None
    """Probability under which it closes; None: two thirds of --threshold."""
    min_event_seconds: Annotated[float, Between(0, 1e6)] = 0.0
    """Shorter events are dropped, after merging."""
    merge_seconds: Annotated[float, Between(0, 1e6)] = 2.0
    """Events so near to each other are one."""
    max_event_seconds: Positive = 300.0
    """A longer event ends there, and a new one begins."""


@dataclass(frozen=True)
class OutputConfig(Settings):
    """What prediction writes beside its JSON lines."""

    out: Path | None = None
    """Folder for events.csv, events.json (as ActivityNet and FiftyOne have it), timeline.csv,
    and of each file timeline.png, events.vtt, a picture of each event and a page with the
    video."""
    clips: bool = False
    """Cut each event out of its file, into --out as event-<id>.mp4."""
    before_seconds: Annotated[float, Between(0, 1e6)] = 2.0
    """What cut clips show before an event."""
    after_seconds: Annotated[float, Between(0, 1e6)] = 2.0
    """What cut clips show after an event."""
    annotate: bool = False
    """Write each file with its probability drawn into it, into --out as annotated.mp4."""

    def __post_init__(self) -> None:
        """Raise `VdError` where there is no folder for what should be written."""
        super().__post_init__()
        if self.out is None and (self.clips or self.annotate):
            flag = "--clips" if self.clips else "--annotate"
            raise VdError(f"{flag} needs a folder to write into; name one with --out.")


@dataclass(frozen=True)
class LiveConfig(Settings):
    """How addresses and cameras are read."""

    reconnect_seconds: Annotated[float, Between(0, 1e6)] = 10.0
    """Seconds until a lost stream or camera is opened again."""
    reconnect_attempts: Annotated[int, Between(0, 1_000_000)] | None = None
    """How often in a row that is tried; None: until it succeeds."""
    read_timeout_seconds: Annotated[float, Between(0.1, 1e6)] = 10.0
    """A stream that gives nothing for so many seconds is lost."""


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Projection, bidirectional LSTM, attention pooling, one logit; or a linear path."""

    clip_frames: Annotated[int, Between(1, 100_000)] = 32
    """Frames of a clip (T) at 8 a second; longer videos are cut into windows."""
    projection_size: Annotated[int, Between(0, 8192)] = 256
    """Features of a frame after the linear projection (P); 0: straight into the LSTM."""
    hidden_size: Annotated[int, Between(0, 4096)] = 128
    """Hidden units of each LSTM direction (H); 0: no LSTM, the linear path alone."""
    dropout_rate: Annotated[float, Between(0, 0.99)] = 0.3
    """Share of units dropped after the projection and after the pooling."""
    mixed_precision: bool = True
    """Products and activations in bfloat16; parameters and loss stay float32."""
    linear_path: bool = False
    """For few clips: a linear map of each clip's mean and mean absolute difference between
    successive frames. The LSTM's logit, which begins at 0, is added. Features are
    standardised."""
    correction_rate: Share = 0.1
    """Learning rate of the LSTM beside a linear path, as a share of --learning-rate."""

    def __post_init__(self) -> None:
        """Raise `VdError` when neither path is left."""
        super().__post_init__()
        if not (self.hidden_size or self.linear_path):
            raise VdError(
                "--hidden-size 0 leaves a head without an LSTM; give a number of hidden "
                "units, or --linear-path."
            )


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """Optimisation; the defaults are those of the recipe's `optimized` column."""

    epochs: Count = 150
    """Passes over the training split; the cosine ends with the last."""
    batch_size: Count = 64
    """Clips a step, over all devices."""
    learning_rate: Positive = 0.0005
    """Peak of the warmup cosine schedule."""
    warmup_epochs: Annotated[int, Between(0, 1_000_000)] = 5
    """Epochs of linear warmup."""
    weight_decay: Annotated[float, Between(0, 10)] = 0.0001
    """AdamW's decoupled decay, on matrices only."""
    grad_clip_norm: Annotated[float, Between(0, 1e9)] = 1.0
    """Global gradient norm above which gradients are scaled down (0: never)."""
    focal_alpha: Share = 0.25
    """Weight of the violent class in the focal loss; the other's is 1 − alpha."""
    focal_gamma: Annotated[float, Between(0, 100)] = 2.0
    """Focusing exponent of the focal loss; 0 is weighted cross-entropy."""
    label_smoothing: Annotated[float, Between(0, 0.99)] = 0.1
    """ε of the targets y(1 − ε) + ε/2."""
    augmentation: bool = True
    """Draw a random window of each clip, and apply the next five settings; without it
    training takes the middle window and the plain view, and changes nothing."""
    temporal_jitter: Annotated[float, Between(0, 0.5)] = 0.1
    """Stretch and shift of a clip's time axis, as a share of its length."""
    spatial_augmentation: bool = True
    """Draw one of the stored views each time; plain alone, or with preset best mirrored."""
    frame_dropping_rate: Annotated[float, Between(0, 0.99)] = 0.0
    """Share of a clip's frames that training masks; at least one stays (0: none)."""
    feature_noise: Annotated[float, Between(0, 10)] = 0.0
    """Gaussian noise on features, as a share of the deviation of a clip's own (0: none)."""
    mixup_alpha: Annotated[float, Between(0, 10)] = 0.0
    """Mixup: shares of two clips are drawn from Beta(alpha, alpha) (0: no mixup)."""
    early_stopping_patience: Count = 15
    """Epochs without a better value before training stops."""
    early_stopping_metric: str = "val_loss"
    """Validation metric that chooses the best checkpoint: val_loss, val_accuracy,
    val_balanced_accuracy, val_roc_auc, or val_ and another name in vd.metrics.binary.METRICS."""
    early_stopping_min_delta: Annotated[float, Between(0, 1e6)] = 0.0
    """Smallest change that counts as better."""
    refit: bool = False
    """For few clips: inner folds of the training and validation clips choose the length of
    training (20, 40 or 80 epochs, none above --epochs), temperature and threshold; then all
    of these clips are trained on. Early stopping is off."""
    refit_if_few: bool = False
    """Do so by itself below 2,000 clips or 50 groups."""
    seed: Seed = 0
    """Seed of initialisation, order, dropout and augmentation."""


@dataclass(frozen=True)
class AdaptTrainingConfig(TrainingConfig):
    """How the backbone is adapted: AdamW, cross-entropy, a fixed length."""

    epochs: Count = 8
    batch_size: Count = 8
    learning_rate: Positive = 0.0002
    warmup_epochs: Annotated[int, Between(0, 1_000_000)] = 2
    weight_decay: Annotated[float, Between(0, 10)] = 0.01
    focal_alpha: Share = 0.5
    focal_gamma: Annotated[float, Between(0, 100)] = 0.0
    label_smoothing: Annotated[float, Between(0, 0.99)] = 0.0
    augmentation: bool = True
    """Draw frames, crop, mirror, and for differences direction of time and gain."""
    refit: bool = False
    """Train on the validation clips too; inner folds calibrate."""
    refit_if_few: bool = True
    temporal_jitter: _NoFlag[float] = 0.0
    spatial_augmentation: _NoFlag[bool] = True
    frame_dropping_rate: _NoFlag[float] = 0.0
    feature_noise: _NoFlag[float] = 0.0
    mixup_alpha: _NoFlag[float] = 0.0
    early_stopping_patience: _NoFlag[int] = 15
    early_stopping_metric: _NoFlag[str] = "val_loss"
    early_stopping_min_delta: _NoFlag[float] = 0.0


ADAPTATION = AdaptTrainingConfig()
ADAPTED_MODEL = ModelConfig(dropout_rate=0.2, mixed_precision=False)


@dataclass(frozen=True)
class RunConfig(Settings):
    """Where a run is kept and what it runs on; no part of its identity."""

    checkpoint_dir: Path = Path("runs/run")
    """The run folder."""
    devices: Processes | None = None
    """Devices of each process to train on; None: all accelerators, or at most 8 cores of a
    CPU, fewer where the batch does not divide over them."""
    coordinator_address: str | None = None
    """HOST:PORT on the machine of process 0, to train with several processes (docs/hosts.md);
    auto: this and the next two from Slurm or Kubernetes."""
    num_processes: Processes | None = None
    """Processes that train together."""
    process_id: Annotated[int, Between(0, 4095)] | None = None
    """Number of this process, from 0; process 0 decides and writes."""
    profile: bool = False
    """Trace the third to the twelfth step with JAX's profiler, into the run's profile/."""
    fresh: bool = False
    """Delete an earlier run in the folder and start over."""


@dataclass(frozen=True)
class OneProcessConfig(RunConfig):
    """Where runs that train in one process are kept and what they run on."""

    coordinator_address: _NoFlag[str | None] = None
    num_processes: _NoFlag[Processes | None] = None
    process_id: _NoFlag[int | None] = None


@dataclass(frozen=True)
class Config(Settings):
    """One experiment. Data and features enter a run's identity by fingerprint."""

    data: DataConfig
    splits: SplitConfig = field(default_factory=SplitConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Raise `VdError` unless the batch divides over the devices that the flags name."""
        super().__post_init__()
        devices = (self.run.devices or 1) * (self.run.num_processes or 1)
        if (batch_size := self.training.batch_size) % devices:
            raise VdError(
                f"--batch-size {batch_size} does not divide over {devices} devices "
                f"(--devices of each of --num-processes); give a multiple of {devices}, or "
                "another number of devices."
            )


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; macOS has no affinity
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def with_settings(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with these values of settings of the model and of training, by name."""

    def changed(group: Any) -> Any:
        own = {name: values[name] for name in values if hasattr(group, name)}
        return dataclasses.replace(group, **own)

    return dataclasses.replace(
        config, model=changed(config.model), training=changed(config.training)
    )


def to_json(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values; paths become absolute strings."""
    values = dataclasses.asdict(config)
    return json.loads(json.dumps(values, default=lambda path: str(path.absolute())))


def from_json(cls: type, values: Mapping[str, Any]) -> Any:
    """The config dataclass `cls` from `to_json`'s values."""
    hints = get_type_hints(cls)

    def restored(hint: Any, value: Any) -> Any:
        if isinstance(value, dict):
            return from_json(hint, value)
        if isinstance(value, list):
            return tuple(value)
        is_path = Path in (hint, *get_args(hint)) and value is not None
        return Path(value) if is_path else value

    return cls(**{name: restored(hints[name], values[name]) for name in values})
