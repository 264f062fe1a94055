"""The recipe's promises, tested one by one: docs/claims.jsonl and docs/claims.md.

    python experiments/claims.py --data-dir DATA --cache-dir CACHE --runs-dir RUNS

Every cell is one setting, cross-validated: 5 folds (groups whole where they are known) × 5
seeds, early stopping and threshold from an inner validation part, float32 but for one cell.
A finished cell is a line of claims.jsonl and is not run again; its runs are deleted. A cell
under way goes on from its finished runs. `claims_table.py` writes the table again after
every cell.

Source:   the recipe (README); DATA holds scfd/manifest.csv and hockey/manifest.csv
Cost:     30 cells of 25 runs each, 5.9 hours together on two cores that did other work too
Promised: each row of docs/claims.md says what
Measured: docs/claims.md
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from claims_lines import FIGURES, read_lines
from claims_table import write_table

from vd.cli import run_command
from vd.config import (
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from vd.console import say
from vd.errors import VdError
from vd.files import read_csv, write_csv

DOCS = Path(__file__).resolve().parents[1] / "docs"
FOLDS, SEEDS = 5, (0, 1, 2, 3, 4)
EPOCHS, WARMUP, PATIENCE, BATCH = 150, 5, 15, 64
QUICK = "optimized", "original"


def at_equal_steps(batch_size: int) -> dict[str, Any]:
    """Another batch size, with as many steps in all, in warmup and in patience."""
    times = batch_size / BATCH
    return {
        "batch_size": batch_size,
        "epochs": round(EPOCHS * times),
        "warmup_epochs": round(WARMUP * times),
        "early_stopping_patience": round(PATIENCE * times),
    }


MAIN: dict[str, dict[str, Any]] = {  # what differs from `optimized`
    "optimized": {},
    "original": {"learning_rate": 0.001, "epochs": 100, "early_stopping_patience": 10},
    "lr1e3": {"learning_rate": 0.001},
    "alpha05": {"focal_alpha": 0.5},
    "patience10": {"early_stopping_patience": 10},
}
FURTHER: dict[str, dict[str, Any]] = {
    "recommended": {"early_stopping_metric": "val_roc_auc"},
    "lr1e3_warmup10": {"learning_rate": 0.001, "warmup_epochs": 10},
    "epochs100": {"epochs": 100},
    "horizon85": {"epochs": 85, "early_stopping_patience": 85},
    "batch32": {"batch_size": 32},
    "batch128": {"batch_size": 128},
    "batch32_steps": at_equal_steps(32),
    "batch128_steps": at_equal_steps(128),
    "smoothing0": {"label_smoothing": 0.0},
    "smoothing005": {"label_smoothing": 0.05},
    "no_clip": {"grad_clip_norm": 0.0},
    "gamma0": {"focal_gamma": 0.0},
    "gamma1": {"focal_gamma": 1.0},
    "cross_entropy": {"focal_gamma": 0.0, "focal_alpha": 0.5},
    "no_augmentation": {"augmentation": False},
    "no_jitter": {"temporal_jitter": 0.0},
    "views": {"feature_preset": "best"},
    "views_unused": {"feature_preset": "best", "spatial_augmentation": False},
    "random_folds": {},
    "bfloat16": {"mixed_precision": True},
}


class Cell(NamedTuple):
    """One setting on one data set."""

    dataset: str
    name: str
    settings: dict[str, Any]


def cells() -> Iterator[Cell]:
    """All of them, SCFD first."""
    for name, settings in {**MAIN, **FURTHER}.items():
        yield Cell("scfd", name, settings)
    for name, settings in MAIN.items():
        yield Cell("hockey", name, settings)


def main(
    data_dir: Path,
    cache_dir: Path,
    runs_dir: Path,
    out: Path = DOCS,
    only: tuple[str, ...] = (),
    quick: bool = False,
) -> None:
    """Run the cells missing in claims.jsonl, or those of them in `only`, and write the table.

    `quick` is two cells a data set of two folds, one seed and four epochs, to try the study.
    """
    log = out / ("claims_quick.jsonl" if quick else "claims.jsonl")
    if unknown := set(only) - {*MAIN, *FURTHER}:
        raise VdError(
            f"--only {min(unknown)} is no cell; {', '.join((*MAIN, *FURTHER))} are."
        )
    settings = {(cell.dataset, cell.name): cell.settings for cell in cells()}
    done = {
        (line["dataset"], line["cell"]): line["settings"] for line in read_lines(log)
    }
    for (dataset, name), was in done.items():
        if was != settings.get((dataset, name)):
            raise VdError(
                f"{log} has the cell {name} on {dataset} with settings that are not those of "
                "this script; delete that line, and it is run again."
            )
    named = [
        (cell.dataset, cell.name) for cell in cells() if not quick or cell.name in QUICK
    ]
    if quick and not set(only) <= set(QUICK):
        raise VdError(
            f"--quick has the cells {' and '.join(QUICK)} only; drop one of the two."
        )
    for cell in cells():
        few = not quick or cell.name in QUICK
        if (
            (cell.dataset, cell.name) in done
            or not few
            or (only and cell.name not in only)
        ):
            continue
        say(f"cell {cell.name} on {cell.dataset}")
        line = run_cell(cell, data_dir, cache_dir, runs_dir, quick)
        out.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        shutil.rmtree(runs_dir / cell.dataset / cell.name)
        write_table(read_lines(log), log.with_suffix(".md"), named)
    write_table(read_lines(log), log.with_suffix(".md"), named)


def run_cell(
    cell: Cell, data_dir: Path, cache_dir: Path, runs_dir: Path, quick: bool
) -> dict[str, Any]:
    """Cross-validate one cell; returns its line."""
    from vd.evaluation.predictions import pooled_by_seed, read_members
    from vd.sweep import crossval

    folder = runs_dir / cell.dataset / cell.name
    data = data_dir / cell.dataset / "manifest.csv"
    if cell.name == "random_folds":
        data = without_groups(data, runs_dir / f"{cell.dataset}-random.csv")
    settings = dict(cell.settings)
    if quick:
        settings |= {"epochs": 4, "warmup_epochs": 1}
    config = config_of(settings, DataConfig(data, cache_dir), folder)
    began = time.perf_counter()
    result = crossval(config, 2 if quick else FOLDS, SEEDS[:1] if quick else SEEDS)
    members = read_members(folder)
    pooled = pooled_by_seed(members)
    first = next(iter(pooled.values()))
    return {
        "dataset": cell.dataset,
        "cell": cell.name,
        "settings": cell.settings,
        "n": result["n"],
        "groups": result["groups"],
        **{name: result["over_seeds"][name] for name in FIGURES},
        "at_half": [at_half(one) for one in pooled.values()],
        "members": [of_member(row, folder) for row in result["per_fold"]],
        "clips": [identity[:12] for identity in first.ids],
        "clusters": cluster_numbers(first.cluster_N),
        "correct": [
            bits(one.predicted_N == (one.labels_N == 1)) for one in pooled.values()
        ],
        "seconds": round(time.perf_counter() - began),
    }


def config_of(settings: dict[str, Any], data: DataConfig, folder: Path) -> Config:
    """`optimized` in float32, with other settings."""
    config = Config(
        data, model=ModelConfig(mixed_precision=False), run=RunConfig(folder)
    )
    for part, kind in (
        ("training", TrainingConfig), ("model", ModelConfig), ("backbone", BackboneConfig),
    ):  # fmt: skip
        names = {field.name for field in fields(kind)} & set(settings)
        own = {name: settings[name] for name in names}
        config = replace(config, **{part: replace(getattr(config, part), **own)})
    return config


def without_groups(manifest: Path, copy: Path) -> Path:
    """The same clips, as if no source were known."""
    rows = [
        {
            "path": os.path.relpath(manifest.parent / row["path"], copy.parent),
            "label": row["label"],
        }
        for row in read_csv(manifest)
    ]
    write_csv(copy, rows)
    return copy


def of_member(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a fold and seed came to, where it stopped, and how often clipping acted."""
    from vd.report.report import RunFacts

    facts = RunFacts(folder / row["member"])
    kept = "fold", "seed", "n", "n_train", "threshold", "accuracy"
    clipped = [epoch["clipped_fraction"] for epoch in facts.rows]
    return {
        **{name: row[name] for name in kept},
        "best_epoch": facts.stopping.best_epoch,
        "last_epoch": facts.stopping.epoch,
        "clipped": sum(clipped) / len(clipped),
    }


def at_half(one: Any) -> dict[str, float]:
    """Accuracy and recall of the violent class at 0.5, of one seed."""
    predicted_N, violent_N = one.probability_N >= 0.5, one.labels_N == 1
    return {
        "accuracy": float((predicted_N == violent_N).mean()),
        "recall_violent": float(predicted_N[violent_N].mean()),
        "recall_nonviolent": float(1 - predicted_N[~violent_N].mean()),
    }


def cluster_numbers(cluster_N: Any) -> list[int]:
    """Each clip's group as a number."""
    from vd.metrics.intervals import group_numbers

    numbers: list[int] = group_numbers(cluster_N).tolist()
    return numbers


def bits(right_N: Any) -> str:
    """Which clips are right, a 0 or 1 each."""
    return "".join("1" if right else "0" for right in right_N)


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main) or 0)
