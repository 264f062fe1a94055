"""`vd crossval`: grouped folds × seeds of one configuration, and across data sets.

1. A sweep trains every fold with every seed. Each member keeps an inner validation part for
   early stopping, temperature and threshold, and tests its fold once.
2. The test predictions are pooled into predictions.csv and crossval.json.
3. With other data sets, each is cross-validated too, and the members of each are tested on
   all others: a matrix.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vd.config import Config
from vd.console import say, say_limits
from vd.data.manifest import read_manifest
from vd.errors import VdError
from vd.files import read_json, write_json
from vd.models.plugins import BUILT_IN, Plugins
from vd.sweep import Grid, member_configs, sweep


def crossval(
    config: Config,
    folds: int,
    seeds: Sequence[int] = (),
    cross_datasets: Sequence[Path] = (),
    plugins: Plugins = BUILT_IN,
) -> dict[str, Any]:
    """Train and test every fold with every seed; returns the content of crossval.json.

    Without `seeds` the run's own is the only one. Finished members are left as they are,
    unfinished ones continue. Raises `VdError` as `vd.sweep.sweep` does.
    """
    folder = config.run.checkpoint_dir
    _check(config, folds, seeds)
    grid = {"seed": list(seeds) or [config.training.seed]}
    names = _names(config, cross_datasets) if cross_datasets else {}
    result = _on_one(config, grid, folds, plugins)
    if names:
        result = _on_all(config, grid, folds, plugins, names, result)
    say(f"written: {folder / 'crossval.json'}, {folder / 'predictions.csv'}")
    return result


def _check(config: Config, folds: int, seeds: Sequence[int]) -> None:
    """Raise `VdError` for wrong flags, before anything slow."""
    folder = config.run.checkpoint_dir
    if folds < 2:
        raise VdError(f"--folds is {folds}; give 2 or more.")
    if len(set(seeds)) < len(seeds):
        raise VdError(
            f"--seeds {' '.join(map(str, seeds))} lists a value twice; remove one."
        )
    if folder.exists() and not folder.is_dir():
        raise VdError(f"--checkpoint-dir {folder} is a file; name a folder.")
    if (folder / "config.json").exists():
        raise VdError(
            f"--checkpoint-dir {folder} is the folder of a run; name another one for the "
            "cross-validation."
        )


def _on_one(config: Config, grid: Grid, folds: int, plugins: Plugins) -> dict[str, Any]:
    """The cross-validation of one data set."""
    from vd.evaluation.crossval import summary, write_crossval
    from vd.evaluation.predictions import read_run

    sweep(config, grid, folds, plugins)
    members = [
        read_run(member.run.checkpoint_dir, fold)
        for _, fold, member in member_configs(config, grid, folds)
    ]
    members.sort(key=lambda member: (member.seed, member.fold or 0))
    facts: dict[str, Any] = {
        "dataset": str(config.data.dataset_path.absolute()),
        "split_seed": config.splits.split_seed,
    }
    before = config.run.checkpoint_dir / "crossval.json"
    if before.exists() and not config.run.fresh:
        record = read_json(before, "delete it, and the same command writes it again")
        if record.get("seeds") == sorted(grid["seed"]):  # of the same members
            facts |= {k: record[k] for k in ("cross_datasets", "matrix") if k in record}
        else:
            say(
                f"crossval.json was of the seeds {record.get('seeds')}: it is replaced; "
                "matrix.csv and report.html are deleted (vd report writes a new page)"
            )
            for name in ("matrix.csv", "report.html"):
                (before.parent / name).unlink(missing_ok=True)
    result = write_crossval(config.run.checkpoint_dir, members, facts)
    say(summary(result))
    say_limits(result["warnings"])
    return result


def _names(config: Config, others: Sequence[Path]) -> dict[str, Path]:
    """Every data set by its name; each is read now, so that a wrong path fails early."""
    from vd.evaluation.cross_dataset import dataset_name

    names: dict[str, Path] = {}
    for path in (config.data.dataset_path, *others):
        name = dataset_name(path)
        if name in names:
            raise VdError(
                f"--cross-dataset: {path} and {names[name]} are both called {name}; name "
                "each data set once, and rename one of two folders or files."
            )
        names[name] = path
        try:
            read_manifest(replace(config.data, dataset_path=path))
        except VdError as error:
            if path == config.data.dataset_path:
                raise
            text = str(error).replace("--dataset-path", "--cross-dataset")
            raise VdError(text) from None
    return names


def _on_all(
    config: Config,
    grid: Grid,
    folds: int,
    plugins: Plugins,
    names: dict[str, Path],
    first: dict[str, Any],
) -> dict[str, Any]:
    """The same on every other data set, and the matrix of all."""
    from vd.evaluation.cross_dataset import (
        cell,
        evaluate_members_on,
        matrix_rows,
        own_cell,
    )
    from vd.evaluation.predictions import read_results
    from vd.files import write_csv
    from vd.metrics.binary import COLLAPSE

    folder = config.run.checkpoint_dir
    folders = {
        name: folder if path == config.data.dataset_path else folder / f"on-{name}"
        for name, path in names.items()
    }
    results = dict.fromkeys(names, first)
    for trained, here in folders.items():  # all, before any is tested on another
        if here != folder:
            say(f"trained on {trained}:")
            results[trained] = _on_one(
                _at(config, names[trained], here), grid, folds, plugins
            )
    matrix = []
    for trained, own in results.items():
        members = read_results(folders[trained])
        for tested, other in names.items():
            if tested == trained:
                figures = own_cell(own, len(members))
            else:
                data = replace(config.data, dataset_path=other)
                figures = cell(evaluate_members_on(members, data, tested))
            matrix.append({"trained_on": trained, "tested_on": tested, **figures})
    others = [str(path.absolute()) for path in list(names.values())[1:]]
    result = {**first, "cross_datasets": others, "matrix": matrix}
    write_csv(folder / "matrix.csv", matrix_rows(matrix))
    write_json(folder / "crossval.json", result)
    for row in matrix:
        accuracy = "undefined" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        say(
            f"trained on {row['trained_on']}, tested on {row['tested_on']}: accuracy "
            f"{accuracy}, {row['n']} clips"
        )
        if row["collapsed"]:
            say(
                f"WARNING: CLASS COLLAPSE on {row['tested_on']} in {row['collapsed']} of {row['members']} "
                f"members: {COLLAPSE}"
            )
    return result


def _at(config: Config, dataset_path: Path, folder: Path) -> Config:
    """The same settings on another data set, in another folder."""
    return replace(
        config,
        data=replace(config.data, dataset_path=dataset_path),
        splits=replace(config.splits, splits_file=None),  # of the first data set
        run=replace(config.run, checkpoint_dir=folder),
    )
