"""Losses: the sigmoid focal loss with label smoothing, or a user's own."""

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped

from vd.config import TrainingConfig


def focal_loss(
    logits_B: Shaped[Array, " B"],
    targets_B: Shaped[Array, " B"],
    focal_alpha: float,
    focal_gamma: float,
) -> Float[Array, " B"]:
    """Focal loss of each clip (Lin et al. 2017, eq. 5); alpha weighs the violent class."""
    return optax.sigmoid_focal_loss(
        logits_B, targets_B, alpha=focal_alpha, gamma=focal_gamma
    )


def clip_losses(
    loss: Callable[..., Any] | None,
    logits_B: Shaped[Array | np.ndarray, " B"],
    labels_B: Shaped[Array | np.ndarray, " B"],
    settings: TrainingConfig,
) -> Float[Array, " B"]:
    """Loss of each clip against its smoothed target (Szegedy et al. 2016, two classes).

    A loss gets the settings that it names among its arguments; None is the focal loss.
    """
    loss, epsilon = loss or focal_loss, settings.label_smoothing
    targets_B = jnp.asarray(labels_B) * (1.0 - epsilon) + epsilon / 2
    names = inspect.signature(loss).parameters
    own = {name: value for name, value in vars(settings).items() if name in names}
    return loss(jnp.asarray(logits_B), targets_B, **own)


def even_logit(
    loss: Callable[..., Any] | None, settings: TrainingConfig, share: float
) -> float:
    """The logit of least mean loss for clips of which a `share` is violent and no more known.

    0 for cross-entropy of balanced classes, below it where violent clips weigh less.
    """
    logit_C = np.linspace(-8, 8, 3201, dtype=np.float32)
    loss_C = np.zeros(len(logit_C))
    for label, weight in ((1, share), (0, 1 - share)):
        labels_C = np.full(len(logit_C), label, np.float32)
        losses_C = np.asarray(
            clip_losses(loss, logit_C, labels_C, settings), np.float64
        )
        loss_C += weight * np.nan_to_num(losses_C, nan=np.inf)
    least = logit_C[loss_C <= loss_C.min() + 1e-7]  # float32's rounding
    return float(least[np.argmin(np.abs(least))])


def imbalance_warning(violent: int, nonviolent: int, alpha: float) -> str | None:
    """A sentence when one class weighs more than twice the other in the loss, else None."""
    heavy, light = violent * alpha, nonviolent * (1.0 - alpha)
    if light <= 2 * heavy and heavy <= 2 * light:
        return None
    balanced = nonviolent / (violent + nonviolent)
    return (
        f"--focal-alpha {alpha} weighs the {violent} violent and {nonviolent} non-violent "
        f"training clips {heavy:.0f} to {light:.0f}, so scores lean to one class; "
        f"--focal-alpha {balanced:.2f} would balance them"
    )
