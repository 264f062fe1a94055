"""One training step: a pure function, and the pmap over it."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float16, Float32, Int, UInt32

from vd.config import Config, with_settings
from vd.console import interrupted
from vd.models.head import Params, apply
from vd.models.losses import clip_losses
from vd.models.plugins import BUILT_IN, Plugins
from vd.training import distributed
from vd.training.augment import augment, clip_keys
from vd.training.optimizer import make_optimizer

AXIS = "devices"


class Batch(NamedTuple):
    """A batch as a step sees it; a global batch has the devices as a first axis."""

    features_BxTxD: Float16[Any, "*N B T D"]  # on the devices already, or on the host
    mask_BxT: Float32[Any, "*N B T"]
    labels_B: Float32[Any, "*N B"]
    index_B: Int[Any, "*N B"]  # index in the global batch, for draws on devices


class TrainState(NamedTuple):
    """Training state (no device axis), as saved in checkpoints."""

    step: Int[Array, ""]  # completed steps
    params: Params
    opt_state: optax.OptState


class StepNumbers(NamedTuple):
    """Settings that are arguments of the step: runs that differ in these share a program."""

    seed: UInt32[Any, ""]
    learning_rate: Float32[Any, ""]  # of this step
    focal_alpha: Float32[Any, ""]
    focal_gamma: Float32[Any, ""]
    label_smoothing: Float32[Any, ""]
    grad_clip_norm: Float32[Any, ""]
    dropout_rate: Float32[Any, ""]


class StepMetrics(NamedTuple):
    """Means over the global batch, and the gradient's norm before clipping."""

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    grad_norm: Float[Array, ""]


TrainStep = Callable[[TrainState, Batch, StepNumbers], tuple[TrainState, StepMetrics]]


def step_numbers(config: Config, devices: Sequence[jax.Device] = ()) -> StepNumbers:
    """The numbers of a run, placed on its `devices`: a transfer once, not at every step."""
    settings = vars(config.model) | vars(config.training)
    numbers = StepNumbers._make(np.float32(settings[n]) for n in StepNumbers._fields)
    numbers = numbers._replace(seed=np.uint32(settings["seed"]))
    if not devices:
        return numbers
    everywhere = NamedSharding(Mesh(np.array(devices), AXIS), PartitionSpec())
    return jax.device_put(numbers, everywhere)


def make_step(config: Config, plugins: Plugins) -> TrainStep:
    """The step of one device, a pure function; its means are over all mapped devices."""

    def step_fn(
        state: TrainState, batch: Batch, numbers: StepNumbers
    ) -> tuple[TrainState, StepMetrics]:
        traced = with_settings(config, numbers._asdict())
        settings, head = traced.training, plugins.make_head(traced.model)
        optimizer = make_optimizer(settings)
        batch = augment(batch, settings, state.step, AXIS, plugins.augmentation)

        def loss_fn(params: Params) -> tuple[Array, Array]:
            keys_B = clip_keys(settings.seed, state.step, batch.index_B)
            dropout = jax.vmap(head.draw_dropout)(keys_B)
            logits_B = apply(
                head, params, batch.features_BxTxD, batch.mask_BxT, dropout
            )
            losses_B = clip_losses(plugins.loss, logits_B, batch.labels_B, settings)
            return losses_B.mean(), logits_B

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, logits_B), grads = grad_fn(state.params)
        accuracy = jnp.mean((logits_B > 0) == (batch.labels_B > 0.5))
        grads, loss, accuracy = jax.lax.pmean((grads, loss, accuracy), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, head.scale_updates(updates))
        metrics = StepMetrics(loss, accuracy, optax.tree.norm(grads))
        return TrainState(state.step + 1, params, opt_state), metrics

    return step_fn


def make_train_step(
    config: Config, devices: Sequence[jax.Device], plugins: Plugins = BUILT_IN
) -> TrainStep:
    """The step over `devices`: takes and returns the state un-stacked, a batch over them.

    Configs that differ in `StepNumbers` alone get the same function, compiled once.
    """
    only = Config(config.data, model=config.model, training=config.training)
    numbers = step_numbers(Config(config.data))._asdict()
    common = with_settings(
        only, {**numbers, "epochs": 1}
    )  # which the step does not use
    return _parallel_step(common, tuple(devices), plugins)


@cache
def _parallel_step(
    config: Config, devices: tuple[jax.Device, ...], plugins: Plugins
) -> TrainStep:
    return _over(devices, make_step(config, plugins), (None, 0, None))


def _over(devices: Sequence[jax.Device], step: Callable[..., Any], axes: Any) -> Any:
    """The step on each of the devices; it reuses the memory of the state that it takes."""
    return jax.pmap(
        step, AXIS, in_axes=axes, out_axes=None, devices=devices, donate_argnums=0
    )


class SharedStep:
    """A step over the devices of all processes, which learn of each other's signals by it.

    The signal is read one step late, so that no device waits for a host.
    """

    def __init__(
        self, config: Config, devices: Sequence[jax.Device], plugins: Plugins
    ) -> None:
        step = make_step(config, plugins)

        def shared(
            state: TrainState, batch: Batch, numbers: StepNumbers, signal: Array
        ) -> tuple[TrainState, StepMetrics, Array]:
            return *step(state, batch, numbers), jax.lax.pmax(signal, AXIS)

        self._local = len(devices) // distributed.processes().count
        self._parallel = _over(devices, shared, (None, 0, None, 0))
        self._signal, self._late = 0, None

    def __call__(
        self, state: TrainState, batch: Batch, numbers: StepNumbers
    ) -> tuple[TrainState, StepMetrics]:
        """Run one step; the batch is this process's rows."""
        signal_D = np.full(self._local, interrupted(), np.int32)
        state, metrics, signal = self._parallel(state, batch, numbers, signal_D)
        if self._late is not None:
            self._signal = int(self._late)
        self._late = signal
        return state, metrics

    def interrupted(self) -> int:
        """The number of the signal that came to any process, 0 for none."""
        return self._signal
