"""Validation curves over the members of each run or cross-validation: table and picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vd import plots
from vd.config import TrainingConfig
from vd.console import say
from vd.files import write_csv
from vd.training.log import read_metrics
from vd.training.optimizer import warmup_steps

PANELS = {"val_loss": "Validation loss", "val_accuracy": "Validation accuracy at 0.5"}


def write_curves(folder: Path, members: Mapping[str, Sequence[Path]]) -> list[Path]:
    """Write curves.csv and curves.png of some run folders by name; returns what was written.

    A run without metrics.jsonl is left out with a word.
    """
    curves = {name: curve(run_dirs) for name, run_dirs in members.items()}
    for name in [name for name, rows in curves.items() if not rows]:
        say(f"no curves of {name}: no metrics.jsonl in its folders")
        del curves[name]
    if not curves:
        return []
    table, picture = folder / "curves.csv", folder / "curves.png"
    rows = [{"run": name, **row} for name, rows in curves.items() for row in rows]
    write_csv(
        table, [{k: "" if v is None else v for k, v in row.items()} for row in rows]
    )
    plots.save(plots.bands(curves, PANELS), picture)
    return [table, picture]


def curve(run_dirs: Sequence[Path]) -> list[dict[str, Any]]:
    """A row an epoch: how many runs got there, mean and standard deviation of each metric."""
    logs = [{row["epoch"]: row for row in read_metrics(run)} for run in run_dirs]
    made = []
    for epoch in sorted({epoch for log in logs for epoch in log}):
        there = [log[epoch] for log in logs if epoch in log]
        row: dict[str, Any] = {"epoch": epoch, "members": len(there)}
        for name in PANELS:
            known = [r[name] for r in there if r.get(name) is not None]
            row[f"{name}_mean"] = float(np.mean(known)) if known else None
            row[f"{name}_sd"] = float(np.std(known, ddof=1)) if len(known) > 1 else None
        made.append(row)
    return made


def phases(
    rows: Sequence[Mapping[str, Any]], config: TrainingConfig, best_epoch: int
) -> dict[str, tuple[int, int]]:
    """First and last epoch of each phase of the recipe, as it happened.

    Warmup: as it was set. Rapid: until nine tenths of the fall of
    the validation loss, from the first epoch to its least, are done. Fine-tuning: until the
    best epoch. Convergence: what follows. A phase that was over before it began is left out.
    """
    losses = np.array([row["val_loss"] for row in rows], float)
    steps = rows[0]["step"]
    fallen = losses[0] - 0.9 * (losses[0] - losses.min())
    ends = {
        "warmup": min(-(-warmup_steps(config, steps) // steps), len(rows)),
        "rapid": int(np.argmax(losses <= fallen)) + 1,
        "fine-tuning": best_epoch,
        "convergence": len(rows),
    }
    made, begin = {}, 1
    for name, end in ends.items():
        if end >= begin:
            made[name] = begin, end
            begin = end + 1
    return made
