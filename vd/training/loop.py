"""The training loop: epochs, validation, checkpoints, early stopping, resumption.

1. Restore the newest whole checkpoint, or initialise and fit statistics of the training
   clips; cut metrics.jsonl back to its epoch.
2. For each epoch, run its steps. Batches are made ahead, and metrics are fetched one step
   late, so that the device never waits for the host.
3. Score the validation split, write the epoch's line, update early stopping.
4. Save the checkpoint with the early-stopping state. The line is written first: a line
   without a checkpoint is cut back on resumption, a checkpoint always has its line.
5. Stop when patience ends; evaluation restores the best checkpoint.

SIGTERM and Ctrl-C end an epoch after the current step, with a checkpoint that holds the
epoch's sums so far; the resumed run continues as the unbroken one would have.

Several processes (`vd.training.distributed`) all train; process 0 alone does the rest.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float16, Float32
from scipy.special import expit

from vd.config import Config
from vd.console import (
    Interrupted,
    Ticker,
    holding_interrupts,
    interrupted,
    say,
    track,
)
from vd.devices import own_numerics
from vd.errors import VdError
from vd.metrics.binary import METRICS, collapsed
from vd.models.head import Head, Params, check_shapes, init_params
from vd.models.losses import clip_losses
from vd.models.plugins import BUILT_IN, Plugins
from vd.models.scoring import score_batches, scoring_device, window_batches
from vd.training import distributed
from vd.training.batches import training_batches
from vd.training.checkpoints import Checkpoint, Checkpoints
from vd.training.feature_set import FeatureSet, fits
from vd.training.log import EarlyStopping, EpochSums, MetricsLog, Row, Watch
from vd.training.optimizer import learning_rates, make_optimizer
from vd.training.step import (
    Batch,
    SharedStep,
    StepMetrics,
    StepNumbers,
    TrainState,
    TrainStep,
    make_train_step,
    step_numbers,
)

_LOGGED = (
    "accuracy", "balanced_accuracy", "recall_violent", "recall_nonviolent", "roc_auc",
)  # fmt: skip
_VALIDATION_SHARE = 1 / 8  # of a GPU's memory; the features to train on have a half
_TRACED = range(3, 13)  # steps of a process; the first compiles


class Phase(NamedTuple):
    """One of several trainings of a run; its last epoch is its best."""

    name: str
    earlier: Sequence[Row] = ()  # lines of metrics.jsonl that stand before its own
    ticker: Ticker | None = (
        None  # of all inner folds, which print no lines of their own
    )


@holding_interrupts()  # a signal ends training after a step, with a checkpoint
@own_numerics()
def train(
    config: Config,
    train_set: FeatureSet,
    val_set: FeatureSet | None,
    run_dir: Path,
    devices: Sequence[jax.Device],
    batch_size: int,
    plugins: Plugins = BUILT_IN,
    phase: Phase | None = None,
) -> Params:
    """Train, or continue, the run in `run_dir`; returns the best epoch's parameters.

    Several processes all call it; process 0 alone has a `val_set` and uses the folder.
    A `phase` has no early stopping, and need not have a `val_set`.
    Raises `VdError` when a loss is not finite, naming step and metric, and `Interrupted`
    after a signal.
    """
    settings, processes = config.training, distributed.processes()
    steps = len(train_set) // batch_size
    rates = learning_rates(settings, steps)
    at = begin(config, train_set.dim, plugins)
    if phase:
        at = replace(at, stopping=replace(at.stopping, metric=""))
    if processes.count == 1:
        step, signal = make_train_step(config, devices, plugins), interrupted
        numbers = step_numbers(config, devices)
    else:
        step = shared = SharedStep(config, devices, plugins)
        numbers, signal = step_numbers(config), shared.interrupted
    with ExitStack() as stack:
        lead = None
        if distributed.is_lead():
            at, lead = _open_lead(
                stack, config, at, train_set, val_set, run_dir, rates, plugins, phase
            )  # fmt: skip
            if config.run.profile:
                step = profiled(step, run_dir / "profile")
        at = distributed.broadcast(replace(at, state=jax.device_get(at.state)))
        batches = training_batches(
            train_set, settings, config.model.clip_frames, batch_size, int(at.state.step),
            len(devices) // processes.count, distributed.rows(batch_size),
        )  # fmt: skip
        at = _Run(
            config, batch_size, steps, rates, numbers, step, batches, signal, lead
        ).go_on(at)
        if not (number := signal()):
            return distributed.broadcast(lead.best(at) if lead else None)
        if lead:
            say(
                f"stopped after step {int(at.state.step)}; its checkpoint is being written"
            )
    distributed.part()
    raise Interrupted(number)


class Validation:
    """Scores the validation part; a GPU keeps its windows from one epoch to the next."""

    def __init__(
        self, config: Config, val_set: FeatureSet, plugins: Plugins = BUILT_IN
    ) -> None:
        self._head, self._set = plugins.make_head(config.model), val_set
        stopping = config.training.early_stopping_metric.removeprefix("val_")
        self._names = [name for name in METRICS if name in (*_LOGGED, stopping)]
        self._losses = jax.jit(
            partial(clip_losses, plugins.loss, settings=config.training)
        )
        frames = config.model.clip_frames
        self._batches = partial(window_batches, clip_frames=frames)
        windows = int(np.sum(-(-val_set.frames_N // frames)))
        size = windows * frames * val_set.dim * np.float16().itemsize
        self._kept = None
        if fits(size, [scoring_device()], _VALIDATION_SHARE):
            batches = list(self._batches(val_set.in_order()))
            self._kept = jax.device_put(batches, scoring_device())

    def metrics(self, params: Params) -> dict[str, Any]:
        """Loss, metrics at threshold 0.5, and whether the predictions have collapsed.

        A loss that is not finite comes alone: nothing else is defined then.
        """
        batches = self._kept or self._batches(self._set.in_order())
        logits_N = score_batches(self._head, params, batches)
        losses_N = self._losses(logits_N.astype(np.float32), self._set.labels_N)
        loss = float(np.mean(np.asarray(losses_N, np.float64)))
        if not np.isfinite(loss):
            return {"val_loss": loss}
        labels_N = self._set.labels_N.astype(int)
        arrays = labels_N, expit(logits_N), logits_N >= 0
        values = {f"val_{name}": METRICS[name].compute(*arrays) for name in self._names}
        over = collapsed(labels_N, logits_N >= 0)
        return {"val_loss": loss, **values, "val_collapsed": over}


@dataclass(frozen=True)
class _Lead:
    """What process 0 alone does: it validates, writes lines and saves checkpoints."""

    validation: Validation | None
    checkpoints: Checkpoints
    log: MetricsLog
    watch: Watch
    phase: Phase | None

    def best(self, at: Checkpoint) -> Params:
        """The best parameters, restored."""
        params, best = self.checkpoints.restore_best(at.state.params)
        if not self.phase:
            say(f"best epoch {best} of {at.epoch} by {at.stopping.metric}")
        return params


def _open_lead(
    stack: ExitStack,
    config: Config,
    at: Checkpoint,
    train_set: FeatureSet,
    val_set: FeatureSet | None,
    run_dir: Path,
    rates: Float32[np.ndarray, " steps"],
    plugins: Plugins,
    phase: Phase | None,
) -> tuple[Checkpoint, _Lead]:
    """Where the run stands, and its folder's files, which `stack` closes.

    `at` is the state before the first step, from which a new run begins.
    """
    checkpoints = stack.enter_context(Checkpoints(run_dir))
    head = plugins.make_head(config.model)
    at = checkpoints.restore_last(at.state) or fitted(at, head, train_set)
    quiet = phase is not None and phase.ticker is not None
    if at.epoch and not quiet:
        say(f"continuing from step {int(at.state.step)}, epoch {at.epoch}")
    of_phase = (phase.name, phase.earlier) if phase else ()
    log = stack.enter_context(MetricsLog(run_dir, at.stopping.epoch, *of_phase))
    ticker = phase.ticker if phase else None
    if ticker is None:
        left = len(rates) - int(at.state.step)
        ticker = stack.enter_context(track("training", left, "steps"))
    watch = Watch(config.training, rates, log.rows, ticker, quiet)
    validation = Validation(config, val_set, plugins) if val_set is not None else None
    return at, _Lead(validation, checkpoints, log, watch, phase)


@dataclass(frozen=True)
class _Run:
    """A run under way, with everything that its epochs need."""

    config: Config
    batch_size: int
    steps: int  # an epoch
    rates: Float32[np.ndarray, " steps"]  # of the whole run
    numbers: StepNumbers
    step: TrainStep
    batches: Iterator[Batch]
    signal: Callable[[], int]
    lead: _Lead | None

    def go_on(self, at: Checkpoint) -> Checkpoint:
        """Train until the last epoch, the end of patience or a signal."""
        epochs = self.config.training.epochs
        while at.stopping.epoch < epochs and not at.stopping.stops:
            at = self._train(at)
            if self.signal():
                if self.lead:
                    self.lead.checkpoints.save(at)
                break
            stopping = self._finish_epoch(at, self.lead) if self.lead else None
            at = Checkpoint(at.state, distributed.broadcast(stopping))
            if self.signal():
                break
        return at

    def _train(self, at: Checkpoint) -> Checkpoint:
        """The remaining steps of an epoch, or those before a signal.

        A step's metrics are fetched while the next step runs.
        """
        state, sums = at.state, replace(at.sums)
        before, began = int(state.step) - sums.steps, time.perf_counter()
        late: StepMetrics | None = None
        for number in range(sums.steps, self.steps):
            asked = time.perf_counter()
            batch = next(self.batches)
            sums.waited += time.perf_counter() - asked
            rate = self.rates[before + number]
            numbers = self.numbers._replace(learning_rate=rate)
            state, metrics = self.step(state, batch, numbers)
            if late is not None:
                self._add(sums, late, before + number)
            late = metrics
            if self.signal():
                break
        if late is not None:
            self._add(sums, late, before + sums.steps + 1)
        sums.seconds += time.perf_counter() - began
        return Checkpoint(state, at.stopping, sums)

    def _add(self, sums: EpochSums, metrics: StepMetrics, step: int) -> None:
        """Add one step's metrics (waits for the device); NaN stops training."""
        loss, accuracy, grad_norm = (float(value) for value in jax.device_get(metrics))
        _check_finite(step, loss=loss, grad_norm=grad_norm)
        sums.add(loss, accuracy, grad_norm, self.config.training.grad_clip_norm)
        if self.lead:
            self.lead.watch.step(loss)

    def _finish_epoch(self, at: Checkpoint, lead: _Lead) -> EarlyStopping:
        """Validation, the epoch's line, early stopping, checkpoint."""
        began, step = time.perf_counter(), int(at.state.step)
        metrics = {}
        if lead.validation:
            metrics = lead.validation.metrics(at.state.params)
            _check_finite(step, val_loss=metrics["val_loss"])
        row = {
            **({"phase": lead.phase.name} if lead.phase else {}),
            "epoch": at.epoch,
            "step": step,
            "learning_rate": float(self.rates[step - 1]),
            **at.sums.row(self.batch_size),
            **metrics,
            "seconds": at.sums.seconds + time.perf_counter() - began,
        }
        metric = self.config.training.early_stopping_metric
        stopping = at.stopping.update(at.epoch, row.get(metric))
        lead.log.write(row)
        lead.checkpoints.save(Checkpoint(at.state, stopping))
        lead.watch.epoch(row, stopping)
        return stopping


def _check_finite(step: int, **values: float) -> None:
    """Raise `VdError` for a value that is NaN or infinite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise VdError(
                f"{name} is {value} at step {step}; start a run in another folder with a "
                "lower --learning-rate or with --no-mixed-precision."
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


def fitted(at: Checkpoint, head: Head, train_set: FeatureSet) -> Checkpoint:
    """The state before the first step, with what the head takes from the training clips."""

    def clips() -> Iterator[Float16[np.ndarray, "F D"]]:
        # an own function: nothing is read for a head that takes nothing
        with track("statistics of the features", len(train_set), "clips") as ticker:
            for views in train_set.in_order():
                yield views[0]
                ticker.advance()

    params = head.fit_statistics(at.state.params, clips())
    return replace(at, state=at.state._replace(params=params))


def profiled(step: TrainStep, folder: Path) -> TrainStep:
    """`step`; its calls 3 to 12 are traced, and what is between them."""
    calls = itertools.count(1)

    def run(*arguments: Any) -> tuple[TrainState, StepMetrics]:
        number = next(calls)
        if number == _TRACED[0]:
            jax.profiler.start_trace(folder)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            state, metrics = step(*arguments)
        if number == _TRACED[-1]:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            say(f"the trace of {len(_TRACED)} steps is in {folder}; xprof shows it")
        return state, metrics

    return run
