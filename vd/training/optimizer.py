"""Gradient clipping, AdamW and the warmup cosine schedule."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float32

from vd.config import TrainingConfig
from vd.console import say


def warmup_steps(config: TrainingConfig, steps_per_epoch: int) -> int:
    """Steps of linear warmup; a warmup as long as the run is cut to a fifth of the run."""
    steps = config.epochs * steps_per_epoch
    warmup = config.warmup_epochs * steps_per_epoch
    if warmup < steps:
        return warmup
    return max(steps // 5, 1) if steps > 1 else 0


def learning_rates(
    config: TrainingConfig, steps_per_epoch: int
) -> Float32[np.ndarray, " steps"]:
    """The rate of each step: linear warmup, then a cosine to 0 (Loshchilov, Hutter 2017)."""
    steps = config.epochs * steps_per_epoch
    warmup = warmup_steps(config, steps_per_epoch)
    if warmup < config.warmup_epochs * steps_per_epoch:
        say(
            f"warning: --warmup-epochs {config.warmup_epochs} is not shorter than the run; "
            f"warming up for {warmup} of its {steps} steps"
        )
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=steps,
    )
    return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(steps)))


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Clip by global norm (0: not at all), then AdamW with decay on matrices alone.

    `config.learning_rate` is that of the step under way; it may be traced.
    """
    return optax.chain(
        _clip_by_global_norm(config.grad_clip_norm),
        optax.adamw(
            lambda _: config.learning_rate,
            weight_decay=config.weight_decay,
            mask=partial(jax.tree.map, lambda leaf: leaf.ndim > 1),
        ),
    )


def _clip_by_global_norm(limit: Any) -> optax.GradientTransformation:
    """Scale gradients by min(1, limit / norm); a limit of 0 is none (Pascanu et al. 2013).

    `optax.clip_by_global_norm` divides each gradient, and XLA on a CPU materialises the
    quotients, which makes the update a fifth slower.
    """
    limit = jnp.asarray(limit)
    limit = jnp.where(limit > 0, limit, jnp.inf)

    def clip(grads: optax.Updates, _: optax.Params | None = None) -> optax.Updates:
        factor = jnp.minimum(1.0, limit / optax.tree.norm(grads))
        return jax.tree.map(lambda grad: factor * grad, grads)

    return optax.stateless(clip)
