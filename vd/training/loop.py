"""The training loop: epochs, validation, checkpoints, early stopping, resumption.

1. Restore the newest whole checkpoint, or initialise; cut metrics.jsonl back to its epoch.
2. For each epoch: its steps, batches made ahead; metrics fetched one step late, so that
   the device never waits for the host.
3. Score the validation split, write the epoch's line, update early stopping.
4. Save the checkpoint, which carries the early-stopping state. The line goes first: a line
   without a checkpoint is cut back on resumption, a checkpoint never lacks its line.
5. Stop when patience ends; the best checkpoint is what evaluation restores.

SIGTERM and Ctrl-C end an epoch after the step under way, with a checkpoint that holds the
epoch's sums so far; what follows is what would have followed.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import optax

from vd.config import Config
from vd.console import say
from vd.errors import VdError
from vd.hosts import ALONE, Hosts
from vd.models.head import Params, init_params
from vd.models.parts import BUILT_IN, Parts
from vd.training.batches import training_batches
from vd.training.checkpoints import Checkpoint, Checkpoints, OnEvent, ignore_event
from vd.training.early_stopping import EarlyStopping
from vd.training.feature_set import FeatureSet
from vd.training.interruption import Interruption
from vd.training.joint import JointInterruption, make_joint_step, share_state
from vd.training.log import EpochSums, MetricsLog
from vd.training.optimizer import learning_rate, make_optimizer, say_cut_warmup
from vd.training.profiling import profiling
from vd.training.step import Batch, StepMetrics, TrainState, TrainStep, make_train_step
from vd.training.validation import Validation
from vd.training.watch import Watch, watching


@dataclass(frozen=True)
class Trained:
    """The parameters of the best epoch, and when training stopped."""

    params: Params
    best_epoch: int
    last_epoch: int


@dataclass(frozen=True)
class Member:
    """What a run of a sweep has in common with the others."""

    name: str
    step: TrainStep
    interruption: Interruption
    alone: bool  # for now no other trains


def train(
    config: Config,
    train_set: FeatureSet,
    val_set: FeatureSet,
    run_dir: Path,
    devices: Sequence[jax.Device],
    batch_size: int,
    parts: Parts = BUILT_IN,
    member: Member | None = None,
    hosts: Hosts = ALONE,
    on_event: OnEvent = ignore_event,
) -> Trained:
    """Train, or go on with, the run in `run_dir`; returns the restored best.

    As a member of a sweep it shares its step and what stops it; as the first of several
    processes it leads. `on_event` is called with the name of each event, in this thread;
    an exception that it raises ends training. Raises `VdError` when a loss is not finite,
    naming step, metric and last checkpoint.
    """
    settings = config.training
    steps = len(train_set) // batch_size
    say_cut_warmup(settings, steps)
    schedule = learning_rate(settings, steps)
    optimizer = make_optimizer(settings, schedule)
    first = begin(config, optimizer, train_set.dim, parts)
    if member is not None:
        step, interruption = member.step, member.interruption
    else:
        step, interruption = _step(config, optimizer, devices, parts, hosts)
    name = member.name if member else None
    profile = run_dir / "profile" if config.run.profile else None
    with (
        nullcontext() if member else interruption,
        Checkpoints(
            run_dir, on_event=on_event
        ) as checkpoints,
    ):
        at = checkpoints.restore_last(first.state) or first
        at = replace(at, state=share_state(at.state, hosts))
        if at.epoch:
            say(f"going on from step {int(at.state.step)}, epoch {at.epoch}")
        with (
            MetricsLog(run_dir, at.stopping.epoch) as log,
            watching(settings, schedule, steps, batch_size, log.rows, name) as watch,
            profiling(step, profile) as step,
        ):
            batches = training_batches(
                train_set, settings, config.model.clip_frames, batch_size,
                int(at.state.step), len(devices) // hosts.count, hosts.rows(batch_size),
            )  # fmt: skip
            at = _Run(
                config, Validation(config, val_set, parts), batch_size, steps, schedule, step,
                batches, checkpoints, log, watch, interruption, hosts, on_event,
            ).go_on(at)  # fmt: skip
        if not interruption.came:
            checkpoints.wait()
            params, best = checkpoints.restore_best(at.state.params)
            of = f"{name}: " if name else ""
            say(
                f"{of}best epoch {best} of {at.epoch} by {settings.early_stopping_metric}"
            )
            return Trained(params, best, at.epoch)
        say(f"stopped after step {int(at.state.step)}; its checkpoint is being written")
    raise KeyboardInterrupt  # where the signal was not this run's to raise


def _step(
    config: Config,
    optimizer: optax.GradientTransformation,
    devices: Sequence[jax.Device],
    parts: Parts,
    hosts: Hosts,
) -> tuple[TrainStep, Interruption]:
    """The step of this process, and what stops it."""
    if hosts.count == 1:
        return make_train_step(config, optimizer, devices, parts), Interruption()
    interruption = JointInterruption()
    return (
        make_joint_step(config, optimizer, devices, parts, interruption),
        interruption,
    )


@dataclass(frozen=True)
class _Run:
    """A run under way, and all that its epochs need."""

    config: Config
    validation: Validation
    batch_size: int
    steps: int  # an epoch
    schedule: optax.Schedule
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
        """The steps that an epoch lacks, or those before a signal.

        A step's metrics are fetched after the next one is under way.
        """
        state, sums = at.state, replace(at.sums)
        before, began = int(state.step) - sums.steps, time.perf_counter()
        late: StepMetrics | None = None
        for number in range(sums.steps, self.steps):
            asked = time.perf_counter()
            batch = next(self.batches)
            sums.waited += time.perf_counter() - asked
            self.on_event("step-begin")
            state, metrics = self.step(state, batch)
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
        """Take in one step's metrics (waits for the device); NaN stops training."""
        loss, accuracy, grad_norm = (float(value) for value in jax.device_get(metrics))
        self._check_finite({"loss": loss, "grad_norm": grad_norm}, step)
        sums.add(loss, accuracy, grad_norm, self.config.training.grad_clip_norm)
        self.watch.step(step, loss)
        self.on_event("step-end")

    def _finish_epoch(self, at: Checkpoint) -> Checkpoint:
        """Validation, the epoch's line, early stopping, checkpoint."""
        began, step = time.perf_counter(), int(at.state.step)
        self.on_event("evaluation-begin")
        metrics = self.validation.metrics(at.state.params)
        self.on_event("evaluation-end")
        self._check_finite({"val_loss": metrics["val_loss"]}, step)
        row = {
            "epoch": at.epoch,
            "step": step,
            "learning_rate": float(self.schedule(step - 1)),
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


def begin(
    config: Config, optimizer: optax.GradientTransformation, dim: int, parts: Parts
) -> Checkpoint:
    """Step 0, from the seed."""
    parts.check(config, dim)
    settings, head = config.training, parts.make_head(config.model)
    key = jax.random.key(settings.seed, impl="threefry2x32")
    params = init_params(head, dim, key)
    state = TrainState(np.zeros((), np.int32), params, optimizer.init(params))  # type: ignore[arg-type]
    stopping = EarlyStopping(
        settings.early_stopping_metric,
        settings.early_stopping_patience,
        settings.early_stopping_min_delta,
    )
    return Checkpoint(state, stopping)
