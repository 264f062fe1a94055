"""One training step: a pure function, and the pmap over it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float16, Float32, Int

from vd.config import Config
from vd.models.head import Params, apply, draw_dropout
from vd.models.parts import BUILT_IN, Parts

AXIS = "devices"


class Batch(NamedTuple):
    """A batch as a step sees it; a global batch has a first axis more, the devices."""

    features_BxTxD: Float16[Any, "*N B T D"]  # on the devices already, or on the host
    mask_BxT: Float32[np.ndarray, "*N B T"]
    labels_B: Float32[np.ndarray, "*N B"]
    index_B: Int[np.ndarray, "*N B"]  # index in the global batch, for draws on devices


class TrainState(NamedTuple):
    """What a checkpoint holds; not stacked over devices. `step` counts steps done."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState


class StepMetrics(NamedTuple):
    """Means over the global batch, and the gradient's norm before clipping."""

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    grad_norm: Float[Array, ""]


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


def make_step(
    config: Config,
    optimizer: optax.GradientTransformation,
    parts: Parts = BUILT_IN,
    axis: str | None = None,
) -> TrainStep:
    """The step, a pure function; its means are also over the mapped `axis`, if any."""
    head = parts.make_head(config.model)

    def loss_fn(params: Params, batch: Batch, step: Array) -> tuple[Array, Array]:
        keys_B = _example_keys(config.training.seed, step, batch.index_B)
        dropout = draw_dropout(head, keys_B)
        logits_B = apply(head, params, batch.features_BxTxD, batch.mask_BxT, dropout)
        losses_B = parts.losses(logits_B, batch.labels_B, config.training)
        return losses_B.mean(), logits_B

    def step_fn(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, logits_B), grads = grad_fn(state.params, batch, state.step)
        accuracy = jnp.mean((logits_B > 0) == (batch.labels_B > 0.5))
        means = grads, loss, accuracy
        grads, loss, accuracy = jax.lax.pmean(means, axis) if axis else means
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(loss, accuracy, optax.tree.norm(grads))
        return TrainState(state.step + 1, params, opt_state), metrics

    return step_fn


def make_train_step(
    config: Config,
    optimizer: optax.GradientTransformation,
    devices: Sequence[jax.Device],
    parts: Parts = BUILT_IN,
) -> TrainStep:
    """The step over `devices`: takes and returns the state un-stacked, a batch over them."""
    parallel: TrainStep = jax.pmap(
        make_step(config, optimizer, parts, AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        devices=list(devices),
        donate_argnums=0,
    )
    return parallel


def _example_keys(seed: int, step: Array, index_B: Any) -> Array:
    """A dropout key a clip, from (seed, step, index in the global batch)."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(index_B)
