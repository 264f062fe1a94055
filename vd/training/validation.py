"""The validation part of an epoch's line, and early stopping on one of its metrics."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from scipy.special import expit

from vd.config import Config
from vd.errors import VdError
from vd.metrics.binary import METRICS, collapsed
from vd.models.head import Params
from vd.models.losses import clip_losses
from vd.models.plugins import BUILT_IN, Plugins
from vd.models.scoring import Windows, score_batches, scoring_device, window_batches
from vd.training.feature_set import FeatureSet, fits

_LOGGED = (
    "accuracy", "balanced_accuracy", "recall_violent", "recall_nonviolent", "roc_auc",
)  # fmt: skip
_DEVICE_SHARE = 1 / 8  # of what JAX may take; the features to train on have a half


def check_metric(metric: str) -> None:
    """Raise `VdError` for a metric that is not val_loss or val_<a name in METRICS>."""
    known = ["val_loss", *(f"val_{name}" for name in METRICS)]
    if metric not in known:
        raise VdError(
            f"--early-stopping-metric {metric} is unknown; give one of {', '.join(known)}."
        )


@dataclass(frozen=True)
class EarlyStopping:
    """The best epoch so far. Each checkpoint has it, so a resumed run stops alike."""

    metric: str
    patience: int
    min_delta: float = 0.0
    best_epoch: int = 0  # epochs count from 1; 0: none yet
    best_value: float = math.nan
    epoch: int = 0

    def update(self, epoch: int, value: float | None) -> "EarlyStopping":
        """Take in an epoch's value; a tie, and an undefined value, keep the earlier best."""
        if value is None:
            return replace(self, epoch=epoch)
        gain = value - self.best_value
        name = self.metric.removeprefix("val_")
        if name == "loss" or not METRICS[name].higher_is_better:
            gain = -gain
        if self.best_epoch == 0 or gain > self.min_delta:
            return replace(self, epoch=epoch, best_epoch=epoch, best_value=value)
        return replace(self, epoch=epoch)

    @property
    def stops(self) -> bool:
        """Whether `patience` epochs have passed without a better one."""
        return self.epoch - self.best_epoch >= self.patience


class Validation:
    """Scores the validation part; a GPU keeps its windows from one epoch to the next."""

    def __init__(
        self, config: Config, val_set: FeatureSet, plugins: Plugins = BUILT_IN
    ) -> None:
        self._head, self._set = plugins.make_head(config.model), val_set
        self._stopping_metric = config.training.early_stopping_metric
        self._losses = jax.jit(
            partial(clip_losses, plugins.loss, settings=config.training)
        )
        self._kept: list[Windows] | None = None
        if fits(self._bytes(), [scoring_device()], _DEVICE_SHARE):
            self._kept = [_on_device(windows) for windows in self._batches()]

    def metrics(self, params: Params) -> dict[str, Any]:
        """Loss, accuracy and recalls at 0.5, ROC AUC, collapse, the early-stopping metric.

        A loss that is not finite comes alone: nothing else is defined then.
        """
        logits_N = score_batches(self._head, params, self._kept or self._batches())
        losses_N = self._losses(logits_N.astype(np.float32), self._set.labels_N)
        loss = float(np.mean(np.asarray(losses_N, np.float64)))
        if not np.isfinite(loss):
            return {"val_loss": loss}
        labels_N = self._set.labels_N.astype(int)
        probability_N, predicted_N = expit(logits_N), logits_N >= 0
        names = dict.fromkeys((*_LOGGED, self._stopping_metric.removeprefix("val_")))
        return {
            "val_loss": loss,
            **{
                f"val_{name}": METRICS[name].compute(
                    labels_N, probability_N, predicted_N
                )
                for name in names
                if name != "loss"
            },
            "val_collapsed": collapsed(labels_N, predicted_N),
        }

    def _batches(self) -> Iterator[Windows]:
        return window_batches(self._set.in_order(), self._head.config.clip_frames)

    def _bytes(self) -> int:
        """The size of all windows, padded."""
        frames = self._head.config.clip_frames
        windows = int(np.sum(-(-self._set.frames_N // frames)))
        return windows * frames * self._set.dim * np.float16().itemsize


def _on_device(windows: Windows) -> Windows:
    arrays = windows.features_BxTxD, windows.mask_BxT
    features, mask = jax.device_put(arrays, scoring_device())
    return Windows(features, mask, windows.owner_B)
