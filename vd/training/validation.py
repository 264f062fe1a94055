"""The validation part of an epoch's line."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from vd.config import Config
from vd.metrics.binary import collapsed, recall, roc_auc
from vd.models.head import Params
from vd.models.losses import clip_losses
from vd.models.plugins import BUILT_IN, Plugins
from vd.models.scoring import Windows, score_batches, scoring_device, window_batches
from vd.training.feature_set import FeatureSet, fits

_DEVICE_SHARE = 1 / 8  # of what JAX may take; the features to train on have a half


class Validation:
    """Scores the validation part; a GPU keeps its windows from one epoch to the next."""

    def __init__(
        self, config: Config, val_set: FeatureSet, plugins: Plugins = BUILT_IN
    ) -> None:
        self._head, self._set = plugins.make_head(config.model), val_set
        self._losses = jax.jit(
            partial(clip_losses, plugins.loss, settings=config.training)
        )
        self._kept: list[Windows] | None = None
        if fits(self._bytes(), [scoring_device()], _DEVICE_SHARE):
            self._kept = [_on_device(windows) for windows in self._batches()]

    def metrics(self, params: Params) -> dict[str, Any]:
        """Loss, accuracy and recalls at 0.5, ROC AUC, collapse: as an epoch's line has them.

        A loss that is not finite comes alone: nothing else is defined then.
        """
        logits_N = score_batches(self._head, params, self._kept or self._batches())
        losses_N = self._losses(logits_N.astype(np.float32), self._set.labels_N)
        loss = float(np.mean(np.asarray(losses_N, np.float64)))
        if not np.isfinite(loss):
            return {"val_loss": loss}
        labels_N = self._set.labels_N.astype(int)
        predicted_N = logits_N >= 0
        recalls = [recall(labels_N, predicted_N, label) for label in (1, 0)]
        defined = [r for r in recalls if r is not None]
        return {
            "val_loss": loss,
            "val_accuracy": float(np.mean(predicted_N == (labels_N == 1))),
            "val_balanced_accuracy": sum(defined) / len(defined),
            "val_recall_violent": recalls[0],
            "val_recall_nonviolent": recalls[1],
            "val_roc_auc": roc_auc(labels_N, logits_N),
            "val_collapsed": collapsed(labels_N, predicted_N),
        }

    def _batches(self) -> Iterator[Windows]:
        return window_batches(self._set.in_order(), self._head.config.clip_frames)

    def _bytes(self) -> int:
        """What all windows take, padded."""
        frames = self._head.config.clip_frames
        windows = int(np.sum(-(-self._set.frames_N // frames)))
        return windows * frames * self._set.dim * np.float16().itemsize


def _on_device(windows: Windows) -> Windows:
    arrays = windows.features_BxTxD, windows.mask_BxT
    features, mask = jax.device_put(arrays, scoring_device())
    return Windows(features, mask, windows.owner_B)
