"""What a person sees of a run under way: a live line, a line an epoch, warnings."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float32

from vd.config import TrainingConfig
from vd.console import duration, live, say
from vd.training.early_stopping import EarlyStopping
from vd.training.optimizer import warmup_steps

Row = Mapping[str, Any]

_OVERFIT_EPOCHS = 3
_OVERFIT_RATIO = 1.1


class Watch:
    """Tells of the steps and epochs of one run; `rows` are the epochs before."""

    def __init__(
        self,
        config: TrainingConfig,
        rates: Float32[np.ndarray, " steps"],
        steps_per_epoch: int,
        batch_size: int,
        rows: Sequence[Row],
        show: Callable[[Callable[[], str]], None],
    ) -> None:
        self._config, self._rates = config, rates
        self._steps, self._batch_size = steps_per_epoch, batch_size
        self._rows, self._show = list(rows), show
        self._since: tuple[int, float] | None = None  # first step seen of the epoch

    def step(self, step: int, loss: float) -> None:
        """A step is done: the live line."""
        now = time.monotonic()
        if self._since is None:  # the first step of a process compiles
            self._since = step, now
            return
        since, began = self._since
        seconds_a_step = (now - began) / (step - since)
        self._show(lambda: self._line(step, loss, seconds_a_step))

    def _line(self, step: int, loss: float, seconds_a_step: float) -> str:
        epochs, last = self._config.epochs, self._rows[-1] if self._rows else {}
        epoch = (step - 1) // self._steps + 1
        left = (epochs * self._steps - step) * seconds_a_step
        if last:  # validation takes its time too
            trained = self._steps * self._batch_size / last["videos_per_second"]
            left += (epochs - epoch + 1) * max(last["seconds"] - trained, 0.0)
        return (
            f"epoch {epoch}/{epochs}  step {step}/{epochs * self._steps}  "
            f"loss {loss:.4f}  {_recalls(last)}  lr {self._rates[step - 1]:.1e}  "
            f"{self._batch_size / seconds_a_step:.0f} videos/s  {duration(left)} left at most"
        )

    def epoch(self, row: Row, stopping: EarlyStopping) -> None:
        """An epoch is done: its line, and warnings."""
        self._since = None
        self._rows.append(row)
        left = row["seconds"] * (self._config.epochs - row["epoch"])
        say(
            f"epoch {row['epoch']}/{self._config.epochs}  step {row['step']}  "
            f"loss {row['train_loss']:.4f}  val {row['val_loss']:.4f}  "
            f"accuracy {_percent(row['val_accuracy'])}  {_recalls(row)}  "
            f"lr {row['learning_rate']:.1e}  {row['videos_per_second']:.0f} videos/s  "
            f"{duration(left)} left at most"
            + ("  best" if stopping.best_epoch == row["epoch"] else "")
        )
        warm = row["step"] > warmup_steps(self._config, self._steps)
        if row["val_collapsed"] and warm:
            say(
                "WARNING: CLASS COLLAPSE at threshold 0.5: nearly all predictions are one "
                "class or a recall is under 20 %; accuracy alone would hide it"
            )
        if overfits(self._rows) and not overfits(self._rows[:-1]):
            say(
                f"WARNING: OVERFITTING: for {_OVERFIT_EPOCHS} epochs the training loss has "
                "been lower and the validation loss a tenth higher than at the best epoch; "
                "more clips, --dropout-rate or --weight-decay may help"
            )


@contextmanager
def watching(
    config: TrainingConfig,
    rates: Float32[np.ndarray, " steps"],
    steps_per_epoch: int,
    batch_size: int,
    rows: Sequence[Row],
) -> Iterator[Watch]:
    """Yield the watch of a run whose epochs before are `rows`."""
    with live() as show:
        yield Watch(config, rates, steps_per_epoch, batch_size, rows, show)


def overfits(rows: Sequence[Row]) -> bool:
    """Whether the last three epochs learnt the training clips at the cost of the others.

    That is: a training loss below, and a validation loss 1.1 times above, those of the
    epoch whose validation loss is the least.
    """
    best = min(rows, key=lambda row: row["val_loss"], default={})
    recent = rows[-_OVERFIT_EPOCHS:]
    return len(recent) == _OVERFIT_EPOCHS and all(
        row["train_loss"] < best["train_loss"]
        and row["val_loss"] > _OVERFIT_RATIO * best["val_loss"]
        for row in recent
    )


def _recalls(row: Row) -> str:
    violent, other = (row.get(f"val_recall_{c}") for c in ("violent", "nonviolent"))
    return f"recall violent {_percent(violent)} non-violent {_percent(other)}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
