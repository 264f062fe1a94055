"""The training loop: epochs, validation, checkpoints, early stopping, resumption.

1. Restore the newest whole checkpoint, or initialise; cut metrics.jsonl back to its epoch.
2. For each epoch, run its steps. Batches are made ahead, and metrics are fetched one step
   late, so that the device never waits for the host.
3. Score the validation split, write the epoch's line, update early stopping.
4. Save the checkpoint with the early-stopping state. The line is written first: a line
   without a checkpoint is cut back on resumption, a checkpoint always has its line.
5. Stop when patience ends; evaluation restores the best checkpoint.

After SIGTERM or Ctrl-C the step under way is the last one. The checkpoint then holds the
epoch's sums so far, and a resumed run gives the same numbers as an unbroken one.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32

from vd.config import Config
from vd.console import say
from vd.errors import VdError
from vd.hosts import ALONE, Hosts
from vd.models.head import Params, check_shapes, init_params
from vd.models.plugins import BUILT_IN, Plugins
from vd.training.batches import training_batches
from vd.training.checkpoints import Checkpoint, Checkpoints, OnEvent, ignore_event
from vd.training.feature_set import FeatureSet
from vd.training.interruption import Interruption
from vd.training.joint import JointInterruption, make_joint_step, share_state
from vd.training.log import EpochSums, MetricsLog, Watch, watching
from vd.training.optimizer import learning_rates, make_optimizer, say_cut_warmup
from vd.training.profiling import profiling
from vd.training.step import (
    Batch,
    StepMetrics,
    StepNumbers,
    TrainState,
    TrainStep,
    make_train_step,
    step_numbers,
)
from vd.training.validation import EarlyStopping, Validation


@dataclass(frozen=True)
class Trained:
    """The parameters of the best epoch, and when training stopped."""

    params: Params
    best_epoch: int
    last_epoch: int


def train(
    config: Config,
    train_set: FeatureSet,
    val_set: FeatureSet,
    run_dir: Path,
    devices: Sequence[jax.Device],
    batch_size: int,
    plugins: Plugins = BUILT_IN,
    hosts: Hosts = ALONE,
    on_event: OnEvent = ignore_event,
) -> Trained:
    """Train, or continue, the run in `run_dir`; returns the restored best.

    As the first of several processes it leads. `on_event` is called with the name of each
    event, in this thread; an exception that it raises ends training. Raises `VdError` when
    a loss is not finite, naming step, metric and last checkpoint.
    """
    settings = config.training
    steps = len(train_set) // batch_size
    say_cut_warmup(settings, steps)
    rates = learning_rates(settings, steps)
    first = begin(config, train_set.dim, plugins)
    step, interruption = _step(config, devices, plugins, hosts)
    numbers = step_numbers(config, devices if hosts.count == 1 else ())
    profile = run_dir / "profile" if config.run.profile else None
    with interruption, Checkpoints(run_dir, on_event=on_event) as checkpoints:
        at = checkpoints.restore_last(first.state) or first
        at = replace(at, state=share_state(at.state, hosts))
        if at.epoch:
            say(f"going on from step {int(at.state.step)}, epoch {at.epoch}")
        with (
            MetricsLog(run_dir, at.stopping.epoch) as log,
            watching(settings, rates, steps, batch_size, log.rows) as watch,
            profiling(step, profile) as step,
        ):
            batches = training_batches(
                train_set, settings, config.model.clip_frames, batch_size,
                int(at.state.step), len(devices) // hosts.count, hosts.rows(batch_size),
            )  # fmt: skip
            at = _Run(
                config, Validation(config, val_set, plugins), batch_size, steps, rates, numbers,
                step, batches, checkpoints, log, watch, interruption, hosts, on_event,
            ).go_on(at)  # fmt: skip
        if not interruption.came:
            checkpoints.wait()
            params, best = checkpoints.restore_best(at.state.params)
            say(f"best epoch {best} of {at.epoch} by {settings.early_stopping_metric}")
            return Trained(params, best, at.epoch)
        say(f"stopped after step {int(at.state.step)}; its checkpoint is being written")
    raise KeyboardInterrupt  # where the signal was not this run's to raise


def _step(
    config: Config, devices: Sequence[jax.Device], plugins: Plugins, hosts: Hosts
) -> tuple[TrainStep, Interruption]:
    """The step of this process, and what stops it."""
    if hosts.count == 1:
        return make_train_step(config, devices, plugins), Interruption()
    interruption = JointInterruption()
    return make_joint_step(config, devices, plugins, interruption), interruption


@dataclass(frozen=True)
class _Run:
    """A run under way, with everything that its epochs need."""

    config: Config
    validation: Validation
    batch_size: int
    steps: int  # an epoch
    rates: Float32[np.ndarray, " steps"]  # of the whole run
    numbers: StepNumbers
    step: TrainStep
    batches: Iterator[Batch]
    checkpoints: Checkpoints
    log: MetricsLog
    watch: Watch
    interruption: Interruption
    hosts: Hosts
    on_event: OnEvent

    def go_on(self, at: Checkpoint) -> Checkpoint:
        """Train until the last epoch, the end of patience or a signal."""
        epochs = self.config.training.epochs
        while at.stopping.epoch < epochs and not at.stopping.stops:
            self.hosts.tell(self.steps - at.sums.steps)
            at = self._train(at)
            if self.interruption.came:
                self.checkpoints.save(at)
                break
            at = self._finish_epoch(at)
            if self.interruption.came:
                break
        self.hosts.tell(None)
        return at

    def _train(self, at: Checkpoint) -> Checkpoint:
        """Run the rest of an epoch's steps, or those until a signal.

        A step's metrics are fetched when the next step is under way.
        """
        state, sums = at.state, replace(at.sums)
        before, began = int(state.step) - sums.steps, time.perf_counter()
        late: StepMetrics | None = None
        for number in range(sums.steps, self.steps):
            asked = time.perf_counter()
            batch = next(self.batches)
            sums.waited += time.perf_counter() - asked
            self.on_event("step-begin")
            rate = self.rates[before + number]
            numbers = self.numbers._replace(learning_rate=rate)
            state, metrics = self.step(state, batch, numbers)
            if late is not None:
                self._add(sums, late, before + number)
            late = metrics
            if self.interruption.came:
                break
        if late is not None:
            self._add(sums, late, before + sums.steps + 1)
        sums.seconds += time.perf_counter() - began
        return Checkpoint(state, at.stopping, sums)

    def _add(self, sums: EpochSums, metrics: StepMetrics, step: int) -> None:
        """Add one step's metrics, which waits for the device; NaN stops training."""
        loss, accuracy, grad_norm = (float(value) for value in jax.device_get(metrics))
        self._check_finite({"loss": loss, "grad_norm": grad_norm}, step)
        sums.add(loss, accuracy, grad_norm, self.config.training.grad_clip_norm)
        self.watch.step(step, loss)
        self.on_event("step-end")

    def _finish_epoch(self, at: Checkpoint) -> Checkpoint:
        """Validate, write the epoch's line, update early stopping, save a checkpoint."""
        began, step = time.perf_counter(), int(at.state.step)
        self.on_event("evaluation-begin")
        metrics = self.validation.metrics(at.state.params)
        self.on_event("evaluation-end")
        self._check_finite({"val_loss": metrics["val_loss"]}, step)
        row = {
            "epoch": at.epoch,
            "step": step,
            "learning_rate": float(self.rates[step - 1]),
            **at.sums.row(self.batch_size),
            **metrics,
            "seconds": at.sums.seconds + time.perf_counter() - began,
        }
        metric = self.config.training.early_stopping_metric
        after = Checkpoint(at.state, at.stopping.update(at.epoch, row[metric]))
        self.log.write(row)
        self.checkpoints.save(after)
        self.watch.epoch(row, after.stopping)
        return after

    def _check_finite(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                newest = self.checkpoints.newest()
                kept = "there is no checkpoint yet"
                if newest is not None:
                    kept = f"the last good checkpoint is {newest}"
                raise VdError(
                    f"{name} is {value} at step {step}, and {kept}; start a run in another "
                    "folder with a lower --learning-rate or with --no-mixed-precision."
                )


def begin(config: Config, dim: int, plugins: Plugins) -> Checkpoint:
    """The state before the first step, from the seed."""
    check_shapes(plugins, config, dim)
    settings, head = config.training, plugins.make_head(config.model)
    key = jax.random.key(settings.seed, impl="threefry2x32")
    params = init_params(head, dim, key)
    opt_state = make_optimizer(settings).init(params)
    state = TrainState(np.zeros((), np.int32), params, opt_state)  # type: ignore[arg-type]
    stopping = EarlyStopping(
        settings.early_stopping_metric,
        settings.early_stopping_patience,
        settings.early_stopping_min_delta,
    )
    return Checkpoint(state, stopping)
