"""The step of several processes: one mean over all devices, one moment to stop."""

import signal
import time
from collections.abc import Sequence
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

from vd.config import Config
from vd.hosts import Hosts
from vd.models.plugins import Plugins
from vd.training.interruption import Interruption
from vd.training.step import (
    AXIS,
    Batch,
    StepMetrics,
    StepNumbers,
    TrainState,
    TrainStep,
    make_step,
)

_ONE_SIGNAL_SECONDS = 1.0  # Slurm's comes twice: to the process and by its parent


class JointInterruption(Interruption):
    """A signal to one process, held back until all know of it, after the same step."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self._since = 0, 0.0  # the signal that came here; 0: none

    def agree(self, number: int) -> None:
        """Take in what all processes know: a signal's number, or 0."""
        if number:
            self._number = number

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.own:
            self.own, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _ONE_SIGNAL_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _to_raise(self) -> int | None:
        return self._number or self.own or None


def make_joint_step(
    config: Config,
    devices: Sequence[jax.Device],
    plugins: Plugins,
    interruption: JointInterruption,
) -> TrainStep:
    """The step over the devices of all processes; each gives its rows of the batch.

    All call it equally often. After a call all know of the signals that came before the
    call before it, so that no device waits for a host.
    """
    step_fn = make_step(config, plugins, AXIS)
    here = sum(device.process_index == jax.process_index() for device in devices)

    def joint(
        state: TrainState, batch: Batch, numbers: StepNumbers, came: jax.Array
    ) -> tuple[TrainState, StepMetrics, jax.Array]:
        return *step_fn(state, batch, numbers), jax.lax.pmax(came, AXIS)

    parallel = jax.pmap(
        joint, axis_name=AXIS, in_axes=(None, 0, None, 0), out_axes=(None, None, None),
        devices=list(devices), donate_argnums=0,
    )  # fmt: skip
    late: jax.Array | None = None

    def run(
        state: TrainState, batch: Batch, numbers: StepNumbers
    ) -> tuple[TrainState, StepMetrics]:
        nonlocal late
        came_D = np.full(here, interruption.own, np.int32)
        state, metrics, came = parallel(state, batch, numbers, came_D)
        if late is not None:
            interruption.agree(int(late))
        late = came
        return state, metrics

    return run


def share_state(state: TrainState, hosts: Hosts) -> TrainState:
    """The state of process 0, in every process; all must have one of its form."""
    if hosts.count == 1:
        return state
    hosts.meet("training")  # none waits in a collective for what others still read
    shared: TrainState = multihost_utils.broadcast_one_to_all(jax.device_get(state))
    return shared
