"""Sigmoid focal loss with label smoothing."""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped

from vd.config import TrainingConfig


def smoothed_targets(
    labels_B: Shaped[Array | np.ndarray, " B"], epsilon: float
) -> Float[Array, " B"]:
    """y(1 − ε) + ε/2 (Szegedy et al. 2016, two classes)."""
    return jnp.asarray(labels_B) * (1.0 - epsilon) + epsilon / 2


def focal_loss(
    logits_B: Shaped[Array | np.ndarray, " B"],
    labels_B: Shaped[Array | np.ndarray, " B"],
    config: TrainingConfig,
) -> Float[Array, " B"]:
    """Focal loss of each clip against smoothed targets (Lin et al. 2017, eq. 5).

    alpha weighs the violent class, 1 − alpha the other; gamma 0 is weighted cross-entropy.
    """
    losses_B: Array = optax.sigmoid_focal_loss(
        jnp.asarray(logits_B),
        smoothed_targets(labels_B, config.label_smoothing),
        alpha=config.focal_alpha,
        gamma=config.focal_gamma,
    )
    return losses_B


def imbalance_warning(violent: int, nonviolent: int, alpha: float) -> str | None:
    """A sentence when one class weighs more than twice the other in the loss, else None."""
    heavy, light = violent * alpha, nonviolent * (1.0 - alpha)
    if light <= 2 * heavy and heavy <= 2 * light:
        return None
    balanced = nonviolent / (violent + nonviolent)
    return (
        f"warning: with {violent} violent and {nonviolent} non-violent clips, --focal-alpha "
        f"{alpha} weighs the classes {heavy:.0f} to {light:.0f}, so 0.5 is no natural "
        f"threshold (the one fitted on validation is used); {balanced:.2f} would balance them"
    )
