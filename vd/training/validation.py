"""The validation part of an epoch's line."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from vd.config import Config, TrainingConfig
from vd.metrics import collapsed, recall, roc_auc
from vd.model import Params
from vd.scoring import score
from vd.training.batches import FeatureSet
from vd.training.parts import BUILT_IN, Parts


def validate(
    config: Config, params: Params, val_set: FeatureSet, parts: Parts = BUILT_IN
) -> dict[str, Any]:
    """Metrics of the validation split; accuracy and recalls at 0.5.

    A loss that is not finite comes alone: nothing else is defined then.
    """
    views = ([val_set.read(i, 0)] for i in range(len(val_set)))
    logits_N = score(parts.make_head(config.model), params, views)
    losses_N = _losses(parts, config.training)(
        logits_N.astype(np.float32), val_set.labels_N
    )
    loss = float(np.mean(np.asarray(losses_N, np.float64)))
    if not np.isfinite(loss):
        return {"val_loss": loss}
    labels_N = val_set.labels_N.astype(int)
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


@cache
def _losses(parts: Parts, config: TrainingConfig) -> Callable[..., jax.Array]:
    """The loss as one compiled program."""
    return jax.jit(partial(parts.losses, config=config))
