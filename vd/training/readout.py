"""The read-out of adapted networks: one linear map of each clip's mean and change.

Its logit is the mean of the logits of its parts, each divided by its own temperature: a
read-out for each adapted network, and one linear probe of the frozen one, which knows what
adaptation forgets (docs/results.md). Equal weights are not fitted, and a temperature is one
number, so few clips do. Both come from logits of clips that the parts have not seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64

from vd.config import ModelConfig
from vd.data.manifest import Video
from vd.metrics.calibration import fit
from vd.models.detector import Detector
from vd.models.head import Params
from vd.models.scoring import peaks, score
from vd.training.checkpoints import Checkpoint, Checkpoints
from vd.training.feature_set import FeatureSet
from vd.training.log import EarlyStopping
from vd.training.refit import InnerFolds, held_logits
from vd.training.regression import fit_regression, pooled, weights_and_bias
from vd.training.step import TrainState

READ_OUT = ModelConfig(linear_path=True, hidden_size=0, mixed_precision=False)


class Linear(NamedTuple):
    """A logit that is linear in a clip's `mean_and_change`."""

    mean_D: Float64[np.ndarray, " D"]  # weights of the means
    change_D: Float64[np.ndarray, " D"]
    bias: float

    def at(self, first: int, dim: int) -> "Linear":
        """The same of frames of `dim` features, of which its own begin at `first`."""
        around = first, dim - first - len(self.mean_D)
        return Linear(
            np.pad(self.mean_D, around), np.pad(self.change_D, around), self.bias
        )

    def params(self) -> Params:
        """As parameters of the head `READ_OUT`, whose features are not standardised."""
        kernel_2D = np.concatenate([self.mean_D, self.change_D]).astype(np.float32)
        return {
            "clip_mean": np.zeros_like(kernel_2D),
            "clip_deviation": np.ones_like(kernel_2D),
            "linear": {
                "kernel": kernel_2D[:, None],
                "bias": np.array([self.bias], np.float32),
            },
        }


class ReadOut(NamedTuple):
    """The whole read-out, and its inner logits."""

    linear: Linear
    inner: InnerFolds | None
    scale: float  # of a logit that is the same in every part


def read_together(
    adapted: Sequence[Linear],
    inner: Sequence[InnerFolds] | None,
    sets: Mapping[str, FeatureSet],
    held: Sequence[Sequence[Video]],
) -> ReadOut:
    """The read-out of adapted networks, and of a frozen one if the features have more.

    `adapted` read the features of a frame from the first on. `inner` has their inner logits
    of the clips of `sets["train"]`, whose inner folds are `held`; None: temperatures come
    from `sets["val"]`.
    """
    train, first, parts = sets["train"], 0, list[Linear]()
    for part in adapted:
        parts.append(part.at(first, train.dim))
        first += len(part.mean_D)
    inner = None if inner is None else list(inner)
    if first < train.dim:
        probe, its_inner = frozen_probe(train, first, [] if inner is None else held)
        parts.append(probe)
        if inner is not None:
            inner.append(its_inner)
    if inner is None:
        judging = sets["val"]
        head = Detector(READ_OUT)
        logits = [score(head, one.params(), judging.in_order()) for one in parts]
    else:
        judging, logits = train, [one.logit_N for one in inner]
    temperatures = part_temperatures(logits, judging.labels_N)
    shares = [1 / (len(parts) * temperature) for temperature in temperatures]
    whole = Linear(
        _sum(shares, [one.mean_D for one in parts]),
        _sum(shares, [one.change_D for one in parts]),
        float(_sum(shares, [one.bias for one in parts])),
    )
    return ReadOut(whole, _summed(inner, shares) if inner else None, sum(shares))


def part_temperatures(
    logits: Sequence[Float64[np.ndarray, " N"]], labels_N: Float32[np.ndarray, " N"]
) -> list[float]:
    """The temperature of each part; 1 of one that is alone, and without logits."""
    if len(logits) == 1 or not len(logits[0]):
        return [1.0] * len(logits)
    return [fit(logit_N, labels_N.astype(int)).temperature for logit_N in logits]


def _summed(inner: Sequence[InnerFolds], shares: Sequence[float]) -> InnerFolds:
    """Inner logits of the whole; its windows are summed before the highest is taken."""
    of_clips = zip(*(one.windows for one in inner), strict=True)
    windows = [_sum(shares, of_clip) for of_clip in of_clips]
    logit_N = _sum(shares, [one.logit_N for one in inner])
    return replace(
        inner[0], logit_N=logit_N, peak_logit_N=peaks(windows), windows=windows
    )


def _sum(shares: Sequence[float], values: Sequence[Any]) -> Any:
    """The sum of the values, each times its share."""
    pairs = zip(shares, values, strict=True)
    return np.sum([share * value for share, value in pairs], axis=0)


def frozen_probe(
    clips: FeatureSet, first: int, held: Sequence[Sequence[Video]]
) -> tuple[Linear, InnerFolds]:
    """A linear probe of the features of frames from `first` on, fitted on all clips.

    And the logits of each inner fold `held` by a probe of the others.
    """
    x_NxP = pooled(clips, first)
    labels_N = clips.labels_N.astype(int)

    def fitted(chosen_N: Bool[np.ndarray, " N"]) -> Linear:
        regression = fit_regression(x_NxP[chosen_N], labels_N[chosen_N])
        weight_P, bias = weights_and_bias(regression)
        mean_D, change_D = np.split(weight_P, 2)
        return Linear(mean_D, change_D, bias).at(first, clips.dim)

    place = {video.name: n for n, video in enumerate(clips.videos)}
    count = len(clips) if held else 0
    fold_N, logit_N = np.zeros(count, int), np.zeros(count)
    windows = [np.zeros(0)] * count
    for fold, part in enumerate(held):
        inside = {video.id for video in part}
        inside_N = np.array([video.id in inside for video in clips.videos])
        params = fitted(~inside_N).params()
        of_part = held_logits(Detector(READ_OUT), params, clips.part(part), clips)
        for video, logit, logit_W in zip(part, *of_part, strict=True):
            n = place[video.name]
            fold_N[n], logit_N[n], windows[n] = fold, logit, logit_W
    inner = InnerFolds(0, {}, fold_N, logit_N, peaks(windows), windows)
    return fitted(np.ones(len(clips), bool)), inner


def write_read_out(run_dir: Path, linear: Linear, epochs: int) -> Params:
    """Save the read-out as the run's checkpoint; returns the head's parameters."""
    params = linear.params()
    stopping = EarlyStopping("", 1, 0.0, epoch=epochs, best_epoch=epochs)
    state = TrainState(np.zeros((), np.int32), params, {})  # type: ignore[arg-type]
    with Checkpoints(run_dir) as checkpoints:
        checkpoints.save(Checkpoint(state, stopping))
    return params
