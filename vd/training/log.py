"""What a run logs: metrics.jsonl, TensorBoard, progress, a line an epoch; early stopping."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float32

from vd.config import TrainingConfig
from vd.console import Ticker, say
from vd.files import explaining, write_text
from vd.metrics.binary import COLLAPSE, METRICS

Row = Mapping[str, Any]  # of metrics.jsonl

FINAL = "final"  # phase that trains on all clips, after inner folds
_LINE_SECONDS = 5.0  # between the lines of short epochs


@dataclass
class EpochSums:
    """Sums over the steps of an epoch so far; a checkpoint within an epoch keeps them."""

    steps: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    grad_norm: float = 0.0
    clipped: int = 0  # steps whose gradient was
    waited: float = 0.0  # seconds that the steps waited for their batches
    seconds: float = 0.0

    def add(
        self, loss: float, accuracy: float, grad_norm: float, clip_norm: float
    ) -> None:
        """Add one step's means; gradients are clipped above `clip_norm` (0: never)."""
        self.steps += 1
        self.loss += loss
        self.accuracy += accuracy
        self.grad_norm += grad_norm
        self.clipped += 0 < clip_norm < grad_norm

    def row(self, batch_size: int) -> dict[str, float]:
        """The epoch's means over equal batches, and its speed."""
        return {
            "train_loss": self.loss / self.steps,
            "train_accuracy": self.accuracy / self.steps,
            "grad_norm": self.grad_norm / self.steps,
            "clipped_fraction": self.clipped / self.steps,
            "videos_per_second": self.steps * batch_size / self.seconds,
            "input_wait_fraction": self.waited / self.seconds,
        }


class MetricsLog:
    """metrics.jsonl, a line an epoch, and the same for TensorBoard."""

    def __init__(
        self,
        run_dir: Path,
        epoch: int,
        phase: str | None = None,
        earlier: Sequence[Row] = (),
    ) -> None:
        """Cut the file back to `epoch` lines, and write TensorBoard's file from them.

        With a `phase` its lines alone are kept, behind those of the `earlier` ones.
        """
        from tensorboardX import SummaryWriter

        self._path = run_dir / "metrics.jsonl"
        rows = [
            row
            for row in read_metrics(run_dir, every_phase=True)
            if row.get("phase") == phase and row["epoch"] <= epoch
        ]
        lines = [json.dumps(row) + "\n" for row in (*earlier, *rows)]
        write_text(self._path, "".join(lines))
        for old in run_dir.glob("events.out.tfevents.*"):
            old.unlink()
        self._board = SummaryWriter(str(run_dir))
        self.rows = rows
        for row in rows:
            self._show(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append one epoch's line, durably."""
        with explaining(self._path):
            with open(self._path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(row, allow_nan=False) + "\n")
                handle.flush()
                os.fsync(handle.fileno())
            self._show(row)

    def _show(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("epoch", "step", "phase") and value is not None:
                self._board.add_scalar(name, float(value), row["epoch"])
        self._board.flush()


def read_metrics(run_dir: Path, every_phase: bool = False) -> list[dict[str, Any]]:
    """The complete lines of a run's metrics.jsonl; a line cut by a crash is left out.

    Of a run with inner folds those of the last phase, which trains on all clips.
    """
    path = run_dir / "metrics.jsonl"
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return [row for row in rows if every_phase or row.get("phase", FINAL) == FINAL]


@dataclass(frozen=True)
class EarlyStopping:
    """The best epoch so far. Each checkpoint has it, so a resumed run stops alike.

    Without a metric the last epoch is the best, and nothing stops early.
    """

    metric: str
    patience: int
    min_delta: float = 0.0
    best_epoch: int = 0  # epochs count from 1; 0: none yet
    best_value: float = math.nan
    epoch: int = 0

    def update(self, epoch: int, value: float | None) -> "EarlyStopping":
        """Take in an epoch's value; a tie, and an undefined value, keep the earlier best."""
        if not self.metric:
            return replace(self, epoch=epoch, best_epoch=epoch)
        if value is not None:
            gain = value - self.best_value
            name = self.metric.removeprefix("val_")
            if name == "loss" or not METRICS[name].higher_is_better:
                gain = -gain
            if self.best_epoch == 0 or gain > self.min_delta:
                return replace(self, epoch=epoch, best_epoch=epoch, best_value=value)
        return replace(self, epoch=epoch)

    @property
    def stops(self) -> bool:
        """Whether `patience` epochs have passed without a better one."""
        return self.epoch - self.best_epoch >= self.patience


class Watch:
    """Prints the steps and epochs of one run; `rows` are the epochs so far."""

    def __init__(
        self,
        config: TrainingConfig,
        rates: Float32[np.ndarray, " steps"],
        rows: Sequence[Row],
        ticker: Ticker,
        quiet: bool = False,
    ) -> None:
        self._config, self._rates = config, rates
        self._rows, self._ticker, self._quiet = list(rows), ticker, quiet
        self._printed = -math.inf

    def step(self, loss: float) -> None:
        """Count a step, and show its loss with the recalls of the last epoch."""
        validated = self._rows and "val_loss" in self._rows[-1]
        recalls = f", {_recalls(self._rows[-1])}" if validated else ""
        epoch = f"epoch {len(self._rows) + 1}/{self._config.epochs}"
        self._ticker.advance(note=f" at most, {epoch}, loss {loss:.4f}{recalls}")

    def epoch(self, row: Row, stopping: EarlyStopping) -> None:
        """Print an epoch's line, at most one every few seconds, and a collapse at once."""
        before = self._rows[-1] if self._rows else {}
        self._rows.append(row)
        if self._quiet:
            return
        warm = row["step"] > np.argmax(self._rates)  # the peak ends the warmup
        if row.get("val_collapsed") and warm and not before.get("val_collapsed"):
            say(
                f"WARNING: CLASS COLLAPSE at threshold 0.5 in epoch {row['epoch']}: {COLLAPSE}"
            )
        last = stopping.stops or row["epoch"] == self._config.epochs
        now = time.monotonic()
        if now - self._printed < _LINE_SECONDS and not last:
            return
        self._printed = now
        validation = ""
        if "val_loss" in row:
            validation = (
                f"val {row['val_loss']:.4f}  accuracy {_percent(row['val_accuracy'])}  "
                f"{_recalls(row)}  "
            )
        say(
            f"epoch {row['epoch']}/{self._config.epochs}  step {row['step']}  "
            f"loss {row['train_loss']:.4f}  {validation}"
            f"lr {row['learning_rate']:.1e}  {row['videos_per_second']:.0f} videos/s"
            + ("  best" if stopping.best_epoch == row["epoch"] else "")
        )


def _recalls(row: Row) -> str:
    violent, other = (row.get(f"val_recall_{c}") for c in ("violent", "nonviolent"))
    return f"recall violent {_percent(violent)} non-violent {_percent(other)}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
