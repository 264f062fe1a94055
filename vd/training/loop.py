"""The training loop: epochs, validation, checkpoints, early stopping, resumption.

1. Restore the newest whole checkpoint, or initialise; cut metrics.jsonl back to its epoch.
2. For each epoch: its steps, batches made ahead; metrics fetched one step late, so that
   the device never waits for the host.
3. Score the validation split, write the epoch's line, update early stopping.
4. Save the checkpoint, which carries the early-stopping state. The line goes first: a line
   without a checkpoint is cut back on resumption, a checkpoint never lacks its line.
5. Stop when patience ends; the best checkpoint is what evaluation restores.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vd.config import Config
from vd.errors import VdError
from vd.metrics import collapsed, recall, roc_auc
from vd.model import Params, init_params
from vd.progress import say
from vd.scoring import score
from vd.training.batches import Batch, FeatureSet, training_batches
from vd.training.checkpoints import Checkpoints
from vd.training.early_stopping import EarlyStopping
from vd.training.log import MetricsLog
from vd.training.loss import focal_loss
from vd.training.optimizer import learning_rate, make_optimizer, warmup_steps
from vd.training.step import StepMetrics, TrainState, make_train_step


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
) -> Trained:
    """Train, or go on with, the run in `run_dir`; returns the restored best.

    Raises `VdError` when a loss is not finite, naming step and metric.
    """
    settings = config.training
    steps_per_epoch = len(train_set) // batch_size
    schedule = learning_rate(settings, steps_per_epoch)
    optimizer = make_optimizer(settings, schedule)
    train_step = make_train_step(config, optimizer, devices)
    state = _initial_state(config, optimizer, train_set.dim)
    stopping = EarlyStopping(
        settings.early_stopping_metric,
        settings.early_stopping_patience,
        settings.early_stopping_min_delta,
    )
    checkpoints = Checkpoints(run_dir)
    try:
        restored = checkpoints.restore_last(state)
        if restored is not None:
            state, stopping = restored.state, restored.stopping
            say(f"going on after epoch {stopping.epoch} of {settings.epochs}")
        log = MetricsLog(run_dir, stopping.epoch)
        batches = training_batches(
            train_set, settings, config.model.clip_frames, batch_size, int(state.step)
        )
        while stopping.epoch < settings.epochs and not stopping.stops:
            epoch = stopping.epoch + 1
            began = time.perf_counter()
            state, sums = _run_epoch(train_step, state, batches, steps_per_epoch)
            row = {
                "epoch": epoch,
                "step": int(state.step),
                "learning_rate": float(schedule(int(state.step) - 1)),
                **sums.row(),
                **validate(config, state.params, val_set),
            }
            seconds = time.perf_counter() - began
            row["videos_per_second"] = steps_per_epoch * batch_size / sums.seconds
            row["input_wait_fraction"] = sums.waited / sums.seconds
            row["seconds"] = seconds
            stopping = stopping.update(epoch, row[settings.early_stopping_metric])
            log.write(row)
            checkpoints.save(state, stopping)
            warm = row["step"] > warmup_steps(settings, steps_per_epoch)
            _report(row, stopping, settings.epochs, warm)
        last_epoch = stopping.epoch
        checkpoints.wait()
        params, best_epoch = checkpoints.restore_best(state.params)
    finally:
        checkpoints.close()
    say(f"best epoch {best_epoch} of {last_epoch} by {settings.early_stopping_metric}")
    return Trained(params, best_epoch, last_epoch)


def validate(config: Config, params: Params, val_set: FeatureSet) -> dict[str, Any]:
    """The validation part of an epoch's line; accuracy and recalls at 0.5."""
    views = ([val_set.read(i, 0)] for i in range(len(val_set)))
    logits_N = score(config.model, params, views)
    labels_N = val_set.labels_N.astype(int)
    losses_N = focal_loss(
        logits_N.astype(np.float32), val_set.labels_N, config.training
    )
    predicted_N = logits_N >= 0
    recalls = [recall(labels_N, predicted_N, label) for label in (1, 0)]
    defined = [r for r in recalls if r is not None]
    return {
        "val_loss": float(np.mean(np.asarray(losses_N, np.float64))),
        "val_accuracy": float(np.mean(predicted_N == (labels_N == 1))),
        "val_balanced_accuracy": sum(defined) / len(defined),
        "val_recall_violent": recalls[0],
        "val_recall_nonviolent": recalls[1],
        "val_roc_auc": roc_auc(labels_N, logits_N),
        "val_collapsed": collapsed(labels_N, predicted_N),
    }


class _EpochSums:
    """Running sums of an epoch's steps."""

    def __init__(self) -> None:
        self.steps, self.loss, self.accuracy, self.grad_norm = 0, 0.0, 0.0, 0.0
        self.waited, self.seconds = 0.0, 0.0

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Take in one step's metrics (waits for the device); NaN stops training."""
        loss, accuracy, grad_norm = (float(value) for value in jax.device_get(metrics))
        for name, value in (("loss", loss), ("grad_norm", grad_norm)):
            if not math.isfinite(value):
                raise VdError(
                    f"{name} is {value} at step {step}; start a run in another folder with a "
                    "lower --learning-rate or with --no-mixed-precision (the checkpoints of "
                    "the epochs before are kept)."
                )
        self.steps += 1
        self.loss += loss
        self.accuracy += accuracy
        self.grad_norm += grad_norm

    def row(self) -> dict[str, float]:
        """Means over the steps; all batches have one size."""
        return {
            "train_loss": self.loss / self.steps,
            "train_accuracy": self.accuracy / self.steps,
            "grad_norm": self.grad_norm / self.steps,
        }


def _run_epoch(
    train_step: Any, state: TrainState, batches: Iterator[Batch], steps: int
) -> tuple[TrainState, _EpochSums]:
    """One epoch's steps; a step's metrics are fetched after the next one is under way."""
    sums = _EpochSums()
    began = time.perf_counter()
    done = int(state.step)
    late: StepMetrics | None = None
    for number in range(done + 1, done + steps + 1):
        asked = time.perf_counter()
        batch = next(batches)
        sums.waited += time.perf_counter() - asked
        state, metrics = train_step(state, batch)
        if late is not None:
            sums.add(number - 1, late)
        late = metrics
    assert late is not None
    sums.add(done + steps, late)
    sums.seconds = time.perf_counter() - began
    return state, sums


def _initial_state(config: Config, optimizer: Any, dim: int) -> TrainState:
    """Step 0, from the seed."""
    key = jax.random.key(config.training.seed, impl="threefry2x32")
    params = init_params(config.model, dim, key)
    return TrainState(np.zeros((), np.int32), params, optimizer.init(params))  # type: ignore[arg-type]


def _report(
    row: dict[str, Any], stopping: EarlyStopping, epochs: int, warm: bool
) -> None:
    """The epoch's line on the screen, and the collapse warning after warmup."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.0f} %"

    left = row["seconds"] * (epochs - row["epoch"]) / 60
    say(
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  "
        f"val {row['val_loss']:.4f}  accuracy {percent(row['val_accuracy'])}  "
        f"recall violent {percent(row['val_recall_violent'])} "
        f"non-violent {percent(row['val_recall_nonviolent'])}  "
        f"lr {row['learning_rate']:.1e}  {row['videos_per_second']:.0f} videos/s  "
        f"{left:.1f} min left at most"
        + ("  best" if stopping.best_epoch == row["epoch"] else "")
    )
    if row["val_collapsed"] and warm:
        say(
            "WARNING: CLASS COLLAPSE at threshold 0.5: nearly all predictions are one class "
            "or a recall is under 20 %; accuracy alone would hide it"
        )
