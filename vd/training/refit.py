"""Few clips: inner folds choose length and threshold, then all clips train (`--refit`).

A validation part of thirty clips chooses epoch and threshold mostly by chance, and its clips
are missing in training (docs/results.md). So the training and validation clips are cut into
inner folds, groups whole, and each fold is scored by models of the other folds: one for each
length of training, whose schedule ends at its last step. The length of least pooled loss is
trained once more, on all of these clips. Temperature and threshold are fitted on its inner
logits. No test clip takes part (Varma and Simon 2006: a choice belongs inside the folds).
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float64, Int

from vd.config import Config, EventConfig
from vd.console import Ticker, say, track
from vd.data.manifest import Video
from vd.data.splits import folds
from vd.errors import VdError
from vd.features.sampling import window_length
from vd.files import read_csv, write_csv
from vd.models.head import Head, Params
from vd.models.losses import clip_losses
from vd.models.plugins import Plugins
from vd.models.scoring import peaks, score, sliding_logits
from vd.training.distributed import several
from vd.training.feature_set import FeatureSet
from vd.training.log import FINAL, read_metrics
from vd.training.loop import Phase, train

_LENGTHS = (20, 40, 80)  # epochs
_LENGTH_WITHOUT_FOLDS = 40
_MOST_FOLDS = 5
_GROUPS_A_FOLD = 3  # of the rarer class
_FEW_CLIPS, _FEW_GROUPS = 2000, 50


@dataclass(frozen=True)
class InnerFolds:
    """What inner folds chose, and their logits of that length: one a clip, out of its fold.

    With too few groups for folds there are no logits.
    """

    epochs: int
    losses: Mapping[int, float]  # pooled over the clips, by length
    fold_N: Int[np.ndarray, " N"]
    logit_N: Float64[np.ndarray, " N"]
    peak_logit_N: Float64[np.ndarray, " N"]  # the highest of a clip's sliding windows
    windows: Sequence[
        Float64[np.ndarray, " W"]
    ] = ()  # all of them, where they are kept


def refits(config: Config, videos: Sequence[Video]) -> bool:
    """Whether inner folds of these training and validation clips take validation's place."""
    groups = {video.group or video.id for video in videos}
    few = len(videos) < _FEW_CLIPS or len(groups) < _FEW_GROUPS
    by_itself = config.training.refit_if_few and few and not several(config.run)
    return config.training.refit or by_itself


def parts_to_use(
    config: Config, parts: Mapping[str, Sequence[Video]]
) -> dict[str, list[Video]]:
    """The splits as training takes them: with `refits`, validation is part of training."""
    both = [*parts["train"], *parts["val"]]
    if refits(config, both):
        return {"train": both, "test": list(parts["test"])}
    return {split: list(videos) for split, videos in parts.items()}


def fewest_to_train(config: Config, parts: Mapping[str, Sequence[Video]]) -> int:
    """The clips of the smallest training, which the batch must not exceed."""
    clips = parts_to_use(config, parts)
    if "val" in clips:
        return len(clips["train"])
    held = inner_folds(clips["train"], config.splits.split_seed)
    return len(clips["train"]) - max(map(len, held), default=0)


def inner_folds(videos: Sequence[Video], seed: int) -> list[list[Video]]:
    """Up to five parts of the videos, groups whole, both classes in each.

    One for every three groups of the rarer class; [] where that is under two.
    """
    groups = [{v.group or v.id for v in videos if v.label == label} for label in (0, 1)]
    count = min(_MOST_FOLDS, min(map(len, groups)) // _GROUPS_A_FOLD)
    while count >= 2:
        fold_of = folds(videos, count, seed)
        parts: list[list[Video]] = [[] for _ in range(count)]
        for video in videos:
            parts[fold_of[video.id]].append(video)
        if all({video.label for video in part} == {0, 1} for part in parts):
            return parts
        count -= 1  # a large group of one class was a whole fold
    return []


def train_with_inner_folds(
    config: Config,
    clips: FeatureSet,
    run_dir: Path,
    devices: Sequence[jax.Device],
    batch_size: int,
    plugins: Plugins,
) -> tuple[Params, InnerFolds]:
    """Train, or continue, the inner folds and then all clips; the last epoch's parameters.

    Each finished inner training leaves its logits in the run's folder `inner`. What they
    choose is read from there, so a resumed run chooses alike.
    """
    training = _Training(config, clips, run_dir / "inner", devices, batch_size, plugins)
    held = inner_folds(clips.videos, config.splits.split_seed)
    instead = "; inner folds validate instead" if held else ""
    say(f"--refit: the validation clips are trained on too{instead}")
    inner = training.choose(held) if held else _without_folds(config)
    earlier = [
        row
        for length in inner.losses
        for fold in range(len(held))
        for row in read_metrics(training.folder(fold, length), every_phase=True)
    ]
    params = train(
        _of_length(config, inner.epochs), clips, None, run_dir, devices, batch_size,
        plugins, Phase(FINAL, earlier),
    )  # fmt: skip
    return params, inner


def _without_folds(config: Config) -> InnerFolds:
    """A fixed length, where there are too few groups to choose one."""
    epochs = min(_LENGTH_WITHOUT_FOLDS, config.training.epochs)
    say(
        f"too few groups for inner folds: {epochs} epochs, temperature 1 and the loss's own "
        "threshold"
    )
    nothing = np.zeros(0)
    return InnerFolds(epochs, {}, nothing.astype(int), nothing, nothing)


def _of_length(config: Config, epochs: int) -> Config:
    return replace(config, training=replace(config.training, epochs=epochs))


@dataclass(frozen=True)
class _Training:
    """The trainings of the inner folds."""

    config: Config
    clips: FeatureSet
    run_dir: Path
    devices: Sequence[jax.Device]
    batch_size: int
    plugins: Plugins

    def folder(self, fold: int, epochs: int) -> Path:
        """Where a training keeps its lines, checkpoints and logits."""
        return self.run_dir / f"fold-{fold}_epochs-{epochs}"

    def choose(self, held: Sequence[Sequence[Video]]) -> InnerFolds:
        """Train and score every fold at every length; the length of least pooled loss."""
        most = self.config.training.epochs
        lengths = [epochs for epochs in _LENGTHS if epochs <= most] or [most]
        place = {video.name: n for n, video in enumerate(self.clips.videos)}
        fold_N = np.zeros(len(place), int)
        logits = {epochs: np.zeros((2, len(place))) for epochs in lengths}
        steps = [(len(place) - len(part)) // self.batch_size for part in held]
        with track("inner folds", sum(steps) * sum(lengths), "steps") as ticker:
            for fold, part in enumerate(held):
                places = [place[video.name] for video in part]
                fold_N[places] = fold
                for epochs in lengths:
                    logits[epochs][:, places] = self._score(fold, part, epochs, ticker)
        losses = {epochs: self._loss(logits[epochs][0]) for epochs in lengths}
        epochs = min(losses, key=losses.__getitem__)  # of equal ones the shortest
        listed = ", ".join(f"{loss:.4f} after {n}" for n, loss in losses.items())
        say(
            f"{len(held)} inner folds: loss {listed} epochs; all {len(place)} clips are "
            f"trained on for {epochs}"
        )
        return InnerFolds(epochs, losses, fold_N, *logits[epochs])

    def _score(
        self, fold: int, part: Sequence[Video], epochs: int, ticker: Ticker
    ) -> Float64[np.ndarray, "2 N"]:
        """Logits of a fold, and of its peaks, by a model of the others.

        Trains that model unless they are kept.
        """
        folder = self.folder(fold, epochs)
        path = folder / "logits.csv"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            inside = {video.name for video in part}
            others = [v for v in self.clips.videos if v.name not in inside]
            held = self.clips.part(part)
            phase = Phase(f"inner fold {fold}, {epochs} epochs", ticker=ticker)
            params = train(
                _of_length(self.config, epochs), self.clips.part(others), held, folder,
                self.devices, self.batch_size, self.plugins, phase,
            )  # fmt: skip
            head = self.plugins.make_head(self.config.model)
            write_logits(
                path, held.videos, *held_logits(head, params, held, self.clips)
            )
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # nobody reads them
        return read_logits(path, part)

    def _loss(self, logit_N: Float64[np.ndarray, " N"]) -> float:
        """Mean loss of all clips."""
        losses_N = clip_losses(
            self.plugins.loss,
            logit_N.astype(np.float32),
            self.clips.labels_N,
            self.config.training,
        )
        return float(np.mean(np.asarray(losses_N, np.float64)))


def held_logits(
    head: Head, params: Params, held: FeatureSet, clips: FeatureSet
) -> tuple[Float64[np.ndarray, " N"], list[Float64[np.ndarray, " W"]]]:
    """Logits of held-out clips, and of the sliding windows of each.

    Windows are as long as for all `clips`.
    """
    logit_N = score(head, params, held.in_order())
    length = window_length(clips.seconds_N, head.config.clip_frames)
    stride = EventConfig.stride_seconds
    windows = sliding_logits(head, params, held.in_time(), length, stride)
    return logit_N, windows


def write_logits(
    path: Path,
    videos: Sequence[Video],
    logit_N: Float64[np.ndarray, " N"],
    windows: Sequence[Float64[np.ndarray, " W"]],
) -> None:
    """Write the logits of held-out clips, and of their highest windows."""
    rows = [
        {"path": video.name, "logit": repr(float(x)), "peak": repr(float(peak))}
        for video, x, peak in zip(videos, logit_N, peaks(windows), strict=True)
    ]
    write_csv(path, rows)


def read_logits(path: Path, videos: Sequence[Video]) -> Float64[np.ndarray, "2 N"]:
    """What `write_logits` wrote, in the order of its clips.

    Raises `VdError` when these are not `videos`.
    """
    rows = read_csv(path)
    if [row["path"] for row in rows] != [v.name for v in videos]:
        raise VdError(
            f"{path} has the logits of other clips than the data set's inner fold; "
            "train with --fresh."
        )
    return np.array([[float(row[name]) for row in rows] for name in ("logit", "peak")])
