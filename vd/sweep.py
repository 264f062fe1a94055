"""A sweep trains one configuration with several values of its settings, and several folds.

Each member trains as `vd train` would and is an ordinary run folder. Members share start-up,
features and the compiled step: the numbers of `vd.training.step.StepNumbers` are arguments
of that step; another setting compiles a step for each of its values.
"""

import resource
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vd.config import Config, ModelConfig, TrainingConfig
from vd.console import say
from vd.data.splits import fold_splits, keep_splits
from vd.errors import VdError
from vd.experiment import (
    evaluate_run,
    open_run,
    prepare,
    say_before_training,
    train_run,
)
from vd.files import lock, read_json, write_csv
from vd.models.plugins import BUILT_IN, Plugins
from vd.training.distributed import several
from vd.training.opening import Data, Opened, check_devices
from vd.training.run_folder import check_folder

Grid = Mapping[str, Sequence[Any]]  # values by the name of a setting

_SUMMARIES = (
    "sweep.csv", "crossval.json", "predictions.csv", "matrix.csv", "report.html",
)  # fmt: skip
_SHOWN = "accuracy", "recall_violent", "recall_nonviolent", "roc_auc"


def sweep(
    config: Config, grid: Grid, folds: int = 0, plugins: Plugins = BUILT_IN
) -> list[dict[str, Any]]:
    """Train and evaluate every combination of a grid; returns the rows of sweep.csv.

    `folds` are grouped folds over all clips, each the test part once (0: the splits as they
    are). Finished members are left as they are, unfinished ones go on. Raises `VdError` as
    `vd.experiment.run` does, and after the last member if one of them failed.
    """
    members = _checked_members(config, grid, folds)
    _say_compilations(grid)
    data = prepare(config, folds=folds > 0)
    by_fold = [data]
    if folds:
        splits = fold_splits(data.ledger.usable(), folds, config.splits.split_seed)
        by_fold = [data.with_splits(videos) for videos in splits]
    elif data.videos != data.given:
        keep_splits(data.videos, config)
    # one batch for all, which the smallest fold can fill
    fewest = min(len(fold.parts()["train"]) for fold in by_fold)
    folder = config.run.checkpoint_dir
    _allow_open_files()
    with ExitStack() as locks:
        if config.run.fresh:  # they describe members that are deleted next
            for name in _SUMMARIES:
                (folder / name).unlink(missing_ok=True)
        runs = {}
        for name, (fold, member) in members.items():
            locks.enter_context(lock(member.run.checkpoint_dir / ".lock", "vd sweep"))
            opened = open_run(member, plugins, by_fold[fold or 0], fewest=fewest)
            if opened is not None:
                runs[name] = member, by_fold[fold or 0], opened
        say(f"{len(members)} members, {len(members) - len(runs)} of them finished")
        _say_other_runs(folder, members)
        errors = _train_and_evaluate(data, runs, plugins) if runs else {}
        rows = [
            _row(name, member, grid, name in errors)
            for name, (_, member) in members.items()
        ]
    write_csv(folder / "sweep.csv", rows)
    for name, error in errors.items():
        raise VdError(f"{len(errors)} of {len(rows)} members failed; {name}: {error}")
    return rows


def parse_grid(assignments: Sequence[str]) -> dict[str, list[Any]]:
    """The grid of `--set NAME=VALUE,VALUE …`; raises `VdError` for a word that is none."""
    kinds = get_type_hints(ModelConfig) | get_type_hints(TrainingConfig)
    grid: dict[str, list[Any]] = {}
    for assignment in assignments:
        name, _, values = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if name not in kinds:
            near = get_close_matches(name, kinds) or sorted(kinds)
            raise VdError(
                f"--set {assignment}: {name or 'it'} is not a setting of the model or of "
                f"training; give NAME=VALUE,VALUE with a name such as {', '.join(near)}."
            )
        if name in grid:
            raise VdError(f"--set gives {name} twice; list its values once.")
        try:
            grid[name] = [
                _parse(value.strip(), kinds[name]) for value in values.split(",")
            ]
        except ValueError as error:
            raise VdError(f"--set {assignment}: {error}.") from None
    return grid


def _parse(text: str, kind: Any) -> Any:
    """One value of a setting; raises `ValueError` for text of another type."""
    if get_origin(kind) is Literal:
        choices = {str(choice): choice for choice in get_args(kind)}
    elif kind is bool:
        choices = {"true": True, "false": False}
    else:
        try:
            return kind(text)
        except ValueError:
            what = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
            raise ValueError(f"{text!r} is not {what}") from None
    if text not in choices:
        raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
    return choices[text]


def member_configs(
    config: Config, grid: Grid, folds: int = 0
) -> Iterator[tuple[str, int | None, Config]]:
    """Name, fold and settings of each member."""
    from vd.training.step import StepNumbers

    of_model = {field.name for field in fields(ModelConfig)}
    others = [name for name in grid if name not in StepNumbers._fields]
    # a fixed order, so that a name does not depend on the order of the flags
    names = [name for name in StepNumbers._fields if name in grid] + sorted(others)
    numbers: Sequence[int | None] = range(folds) if folds else [None]
    for fold, *values in product(numbers, *(grid[name] for name in names)):
        chosen = dict(zip(names, values, strict=True))
        words = [f"fold-{fold}"] if fold is not None else []
        words += [f"{key.replace('_', '-')}-{_short(v)}" for key, v in chosen.items()]
        name = "_".join(words) or "member"
        model = {key: value for key, value in chosen.items() if key in of_model}
        training = {key: chosen[key] for key in chosen.keys() - of_model}
        yield (
            name,
            fold,
            replace(
                config,
                model=replace(config.model, **model),
                training=replace(config.training, **training),
                run=replace(
                    config.run, checkpoint_dir=config.run.checkpoint_dir / name
                ),
            ),
        )


def _short(value: Any) -> str:
    """A value in a member's name; no two values have the same."""
    if not isinstance(value, float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _checked_members(
    config: Config, grid: Grid, folds: int
) -> dict[str, tuple[int | None, Config]]:
    """Fold and settings of each member by name; raises `VdError` for a wrong setting."""
    check_devices(config)
    if several(config.run):
        raise VdError(
            "members of a sweep or a cross-validation train in one process; leave "
            "--coordinator-address, --num-processes and --process-id out, or use vd train."
        )
    if folds < 0 or folds == 1:
        raise VdError(
            f"--folds is {folds}; give 2 or more, or 0 for the splits as they are."
        )
    if config.run.profile:
        raise VdError("--profile traces one run; leave it out, or use vd train.")
    for name, values in grid.items():
        if len(set(values)) < len(values):
            raise VdError(f"--set {name} lists a value twice; remove one.")
    members = {
        name: (fold, member)
        for name, fold, member in member_configs(config, grid, folds)
    }
    from vd.training.validation import check_metric

    for _, member in members.values():
        check_metric(member.training.early_stopping_metric)
        check_devices(member)
        check_folder(member.run.checkpoint_dir)
    return members


def _say_compilations(grid: Grid) -> None:
    from vd.training.step import StepNumbers

    if compiled := sorted(set(grid) - set(StepNumbers._fields)):
        say(f"note: a step is compiled for each value of {', '.join(compiled)}")


def _say_other_runs(folder: Path, members: Container[str]) -> None:
    """Name the runs in the folder that are not members: they stay."""
    runs = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if others := [name for name in runs if name not in members]:
        say(
            f"note: {len(others)} runs in {folder} belong to another grid (for example "
            f"{others[0]}); they are kept, and no result includes them"
        )


def _allow_open_files() -> None:
    """Raise the process's limit of open files: every member's lock is one."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):  # where the limit is not a number, as on macOS
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _train_and_evaluate(
    data: Data, runs: Mapping[str, tuple[Config, Data, Opened]], plugins: Plugins
) -> dict[str, VdError]:
    """Train and evaluate each member; returns the errors of those that failed."""
    from vd.training.feature_set import TRAINED_SHARE, FeatureSet

    @lru_cache(maxsize=1)  # another batch size may take other devices
    def features(devices: Any) -> FeatureSet:
        usable = data.ledger.usable()
        return FeatureSet(usable, data.store, devices, TRAINED_SHARE)

    errors: dict[str, VdError] = {}
    for number, (name, (config, of_fold, opened)) in enumerate(runs.items(), start=1):
        everything = features(tuple(opened.devices))
        if number == 1:
            say_before_training(config, everything, opened.devices)
        say(f"member {number} of {len(runs)}: {name}")
        sets = {
            split: everything.part(clips) for split, clips in of_fold.parts().items()
        }
        try:
            trained = train_run(config, plugins, sets, opened)
            evaluate_run(config, plugins, sets, trained)
        except VdError as error:
            say(f"{name} failed: {error}")
            errors[name] = error
    return errors


def _row(name: str, config: Config, grid: Grid, failed: bool) -> dict[str, Any]:
    """A member's row of sweep.csv: its settings, and the figures of its test part."""
    settings = vars(config.model) | vars(config.training)
    result = dict.fromkeys(_SHOWN)
    if not failed:
        path: Path = config.run.checkpoint_dir / "evaluation_test.json"
        result = read_json(path, "delete it, and the same command evaluates again")
    return {
        "member": name,
        **{setting: settings[setting] for setting in grid},
        **{key: result.get(key) for key in _SHOWN},
    }
