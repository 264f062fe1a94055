"""An epoch's sums and its line: metrics.jsonl, and the same for TensorBoard."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vd.console import say
from vd.errors import VdError
from vd.files import write_text


@dataclass
class EpochSums:
    """What is done of an epoch; a checkpoint within an epoch keeps it."""

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
        """Take in one step's means over its batch; clipping is above `clip_norm`, 0: never."""
        self.steps += 1
        self.loss += loss
        self.accuracy += accuracy
        self.grad_norm += grad_norm
        self.clipped += 0 < clip_norm < grad_norm

    def row(self, batch_size: int) -> dict[str, float]:
        """The epoch's means, all batches being of one size, and its speed."""
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

    def __init__(self, run_dir: Path, epoch: int) -> None:
        """Cut the file back to `epoch` lines; TensorBoard's file is written from it again."""
        from tensorboardX import SummaryWriter

        self._path = run_dir / "metrics.jsonl"
        rows = [row for row in read_metrics(run_dir) if row["epoch"] <= epoch]
        if len(rows) < epoch:
            say(f"warning: {self._path} has {len(rows)} of the {epoch} epochs so far")
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
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
        try:
            with open(self._path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(row, allow_nan=False) + "\n")
                handle.flush()
                os.fsync(handle.fileno())
            self._show(row)
        except OSError as error:
            raise VdError(
                f"{self._path} cannot be written ({error.strerror}); free some space, then "
                "run the same command again: it goes on from the last checkpoint."
            ) from error

    def _show(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("epoch", "step") and value is not None:
                self._board.add_scalar(name, float(value), row["epoch"])
        self._board.flush()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl; a line that a crash cut is left out."""
    path = run_dir / "metrics.jsonl"
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            row["epoch"], row["val_loss"]
        except (ValueError, TypeError, KeyError):
            break
        rows.append(row)
    return rows
