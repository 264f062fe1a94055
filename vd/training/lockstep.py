"""Many runs as one program: a compiled step of several members at once, by `jax.vmap`.

Each member is an ordinary run, in a thread of its own: its batches, validation, early
stopping and checkpoints are those of `vd.training.loop`. Where it asks for a step it waits
until every member of its group that still trains has asked for one. A member that has ended
leaves its place empty, and the program shrinks by halves.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt32

from vd.config import Config
from vd.models.parts import Parts
from vd.training.optimizer import learning_rate, make_optimizer
from vd.training.step import Batch, StepMetrics, TrainState, TrainStep, make_step

_AXIS = "devices"


class Settings(NamedTuple):
    """What members may differ in, as values of the program; the rest is compiled in."""

    seed: UInt32[np.ndarray, " M"]
    focal_alpha: Float32[np.ndarray, " M"]
    focal_gamma: Float32[np.ndarray, " M"]
    label_smoothing: Float32[np.ndarray, " M"]
    grad_clip_norm: Float32[np.ndarray, " M"]
    dropout_rate: Float32[np.ndarray, " M"]
    learning_rate: Float32[np.ndarray, " M"]  # of this step


def settings_of(config: Config) -> Settings:
    """The settings of one member, without M; its learning rate is that of no step yet."""
    training = config.training
    numbers = (
        training.focal_alpha, training.focal_gamma, training.label_smoothing,
        training.grad_clip_norm, config.model.dropout_rate, 0.0,
    )  # fmt: skip
    seed = np.asarray(training.seed, np.uint32)
    return Settings._make((seed, *(np.asarray(n, np.float32) for n in numbers)))


def with_settings(config: Config, settings: Settings) -> Config:
    """A config whose numbers are a member's, traced; only a step can be made of it."""
    values = settings._asdict()
    model = replace(config.model, dropout_rate=values.pop("dropout_rate"))
    del values["learning_rate"]
    return replace(config, model=model, training=replace(config.training, **values))


class Lockstep:
    """Steps of members that differ in `Settings` alone, a group of them at once."""

    def __init__(
        self,
        configs: Mapping[str, Config],
        steps_per_epoch: Mapping[str, int],
        parts: Parts,
        devices: Sequence[jax.Device],
    ) -> None:
        self._settings = {name: settings_of(config) for name, config in configs.items()}
        self._rates = {  # by step; optax's schedules do not trace
            name: np.asarray(
                jax.vmap(learning_rate(config.training, steps_per_epoch[name]))(
                    np.arange(config.training.epochs * steps_per_epoch[name])
                )
            )
            for name, config in configs.items()
        }
        self._program = _program(next(iter(configs.values())), parts, devices)
        self._turn = threading.Condition()
        self._group = 0
        self._training: set[str] = set()
        self._asked: dict[str, tuple[TrainState, Batch]] = {}
        self._done: dict[str, tuple[TrainState, StepMetrics]] = {}
        self._error: BaseException | None = None

    def enter(self, members: Collection[str]) -> None:
        """Begin with a group; the one before has left."""
        self._group, self._training = len(members), set(members)
        self._error = None

    def step_of(self, member: str) -> TrainStep:
        """The step that one member calls, in its own thread."""

        number: int | None = None

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
            nonlocal number
            number = int(state.step) if number is None else number + 1
            rate = self._rates[member][number]
            settings = self._settings[member]._replace(learning_rate=rate)
            with self._turn:
                self._settings[member] = settings
                self._asked[member] = state, batch
                self._run_if_complete()
                self._turn.wait_for(lambda: member in self._done or self._error)
                if self._error is not None:
                    raise self._error
                return self._done.pop(member)

        return step

    def leave(self, member: str) -> None:
        """Say that a member trains no longer."""
        with self._turn:
            self._training.discard(member)
            self._run_if_complete()

    def _run_if_complete(self) -> None:
        """Take the step, once all have asked; an error goes to all."""
        if not self._training or set(self._asked) != self._training:
            return
        members = sorted(self._asked)
        empty = self._places(len(members)) - len(members)
        places = (
            members + members[:1] * empty
        )  # what stands in an empty place is dropped
        try:
            states = tuple(self._asked[member][0] for member in places)
            batches = tuple(self._asked[member][1] for member in places)
            settings = [self._settings[member] for member in places]
            values = Settings(*map(np.stack, zip(*settings, strict=True)))
            results = self._program(states, batches, values)
            self._done |= dict(zip(members, zip(*results, strict=True), strict=False))
        except BaseException as error:  # noqa: BLE001  # every member raises it
            self._error = error
        self._asked = {}
        self._turn.notify_all()

    def _places(self, members: int) -> int:
        """Places of the program: all of the group's, or a half, a quarter…: few to compile."""
        places = self._group
        while (half := -(-places // 2)) >= members and half < places:
            places = half
        return places


def _program(config: Config, parts: Parts, devices: Sequence[jax.Device]) -> Any:
    """(states, batches, settings of all) → (states, metrics), a tuple a member each."""

    def one(state: TrainState, batch: Batch, settings: Settings) -> Any:
        traced = with_settings(config, settings)
        optimizer = make_optimizer(
            traced.training, lambda count: settings.learning_rate
        )
        return make_step(traced, optimizer, parts, _AXIS)(state, batch)

    def all_members(states: Any, batches: Any, settings: Settings) -> Any:
        state, batch = (
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
            for trees in (states, batches)
        )
        made = jax.vmap(one)(state, batch, settings)
        return tuple(
            tuple(
                jax.tree.map(lambda leaf, i=i: leaf[i], tree)
                for i in range(len(states))
            )
            for tree in made
        )

    return jax.pmap(
        all_members, axis_name=_AXIS, in_axes=(None, 0, None), out_axes=None,
        devices=list(devices),
    )  # fmt: skip
