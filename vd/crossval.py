"""`vd crossval`: grouped folds × seeds of one configuration, and across data sets.

1. A sweep trains every fold with every seed. Each member keeps an inner validation part for
   early stopping, temperature and threshold, and tests its fold once.
2. The test predictions are pooled into predictions.csv and crossval.json.
3. With other data sets, each is cross-validated too, and the members of each are tested on
   all others: a matrix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vd.config import Config
from vd.console import say, say_limits
from vd.data.manifest import read_manifest
from vd.errors import VdError
from vd.files import read_json, write_csv, write_json
from vd.models.plugins import BUILT_IN, Plugins
from vd.sweep import member_configs, sweep


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
    if (folder / "config.json").exists():
        raise VdError(
            f"--checkpoint-dir {folder} is the folder of a run; name another one for the "
            "cross-validation."
        )
    grid = {"seed": list(dict.fromkeys(seeds)) or [config.training.seed]}
    configs = _configs(config, cross_datasets)
    for name, one in configs.items():
        say(f"cross-validation of {name}:")
        sweep(one, grid, folds, plugins)
    results = {
        name: _write(one, list(member_configs(one, grid, folds)))
        for name, one in configs.items()
    }
    result = next(iter(results.values()))
    if cross_datasets:
        others = [str(path.absolute()) for path in cross_datasets]
        matrix = _matrix(configs, results)
        result = {**result, "cross_datasets": others, "matrix": matrix}
        write_json(folder / "crossval.json", result)
    say(f"written: {folder / 'crossval.json'}, {folder / 'predictions.csv'}")
    return result


def _configs(config: Config, others: Sequence[Path]) -> dict[str, Config]:
    """The settings on every data set, by its name.

    Each data set is read now, so that a wrong path fails early.
    """
    from vd.evaluation.cross_dataset import dataset_name

    first = config.data.dataset_path
    configs = {dataset_name(first): config}
    for path in others:
        name = dataset_name(path)
        if name in configs:
            raise VdError(
                f"--cross-dataset: {path} and {configs[name].data.dataset_path} are both "
                f"called {name}; name each data set once, and rename one of two folders or "
                "files."
            )
        configs[name] = replace(
            config,
            data=replace(config.data, dataset_path=path),
            splits=replace(config.splits, splits_file=None),  # of the first data set
            run=replace(
                config.run, checkpoint_dir=config.run.checkpoint_dir / f"on-{name}"
            ),
        )
    for one in configs.values():
        read_manifest(one.data)
    return configs


def _write(
    config: Config, members: Sequence[tuple[str, int | None, Config]]
) -> dict[str, Any]:
    """Pool the members' predictions of one data set into its files."""
    from vd.evaluation.crossval import summary, write_crossval
    from vd.evaluation.predictions import read_run

    folder = config.run.checkpoint_dir
    tested = [read_run(member.run.checkpoint_dir, fold) for _, fold, member in members]
    tested.sort(key=lambda member: (member.seed, member.fold or 0))
    facts = {
        "dataset": str(config.data.dataset_path.absolute()),
        "split_seed": config.splits.split_seed,
    }
    path = folder / "crossval.json"
    remedy = "delete it, and the same command writes it again"
    former = read_json(path, remedy) if path.exists() else {}
    result = write_crossval(folder, tested, facts)
    if former.get("per_fold") != result["per_fold"]:
        for name in ("matrix.csv", "report.html"):  # of other members
            (folder / name).unlink(missing_ok=True)
    say(summary(result))
    say_limits(result["warnings"])
    return result


def _matrix(
    configs: Mapping[str, Config], results: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The members of every data set tested on every other; writes matrix.csv."""
    from vd.evaluation.cross_dataset import (
        cell,
        evaluate_members_on,
        matrix_rows,
        own_cell,
    )
    from vd.evaluation.predictions import read_results
    from vd.metrics.binary import COLLAPSE

    matrix = []
    for trained, own in results.items():
        members = read_results(configs[trained].run.checkpoint_dir)
        for tested, other in configs.items():
            if tested == trained:
                figures = own_cell(own, len(members))
            else:
                figures = cell(evaluate_members_on(members, other.data, tested))
            matrix.append({"trained_on": trained, "tested_on": tested, **figures})
    first = next(iter(configs.values()))
    write_csv(first.run.checkpoint_dir / "matrix.csv", matrix_rows(matrix))
    for row in matrix:
        accuracy = "undefined" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        say(
            f"trained on {row['trained_on']}, tested on {row['tested_on']}: accuracy "
            f"{accuracy}, {row['n']} clips"
        )
        if row["collapsed"]:
            say(
                f"WARNING: CLASS COLLAPSE on {row['tested_on']} in {row['collapsed']} of "
                f"{row['members']} members: {COLLAPSE}"
            )
    return matrix
