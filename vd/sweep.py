"""Sweeps and cross-validations: one configuration with several values of its settings.

Each member trains as `vd train` would and is an ordinary run folder. Members share start-up,
features and the compiled step: the numbers of `vd.training.step.StepNumbers` are arguments
of that step; another setting compiles a step for each of its values.

A cross-validation is the sweep of folds × seeds: each member tests its fold once, and the
test predictions are pooled. With other data sets, each is cross-validated too, and the
members of each are tested on all others: a matrix.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from vd.adaptation import adapt_prepared, check_adaptation, check_parts
from vd.config import AdaptConfig, Config, ModelConfig, TrainingConfig, with_settings
from vd.console import say
from vd.data.manifest import Video, read_manifest
from vd.data.splits import fold_splits, for_folds, keep_splits, with_splits
from vd.errors import VdError
from vd.experiment import (
    check,
    check_backbone,
    open_run,
    prepare,
    train_and_evaluate,
)
from vd.features.seen import Seen
from vd.files import lock, read_json, write_csv, write_json
from vd.metrics.binary import COLLAPSE, shown
from vd.models.plugins import BUILT_IN, Plugins
from vd.training.run_folder import Data
from vd.training.step import StepNumbers

Grid = Mapping[str, Sequence[Any]]  # values by the name of a setting

_SUMMARIES = (
    "sweep.csv", "crossval.json", "predictions.csv", "matrix.csv", "report.html",
)  # fmt: skip
_SHOWN = "accuracy", "recall_violent", "recall_nonviolent", "roc_auc"


class SweepMember(NamedTuple):
    """One run of a sweep; `fold` is None without folds."""

    name: str
    fold: int | None
    config: Config


def sweep(
    config: Config, grid: Grid, folds: int = 0, plugins: Plugins = BUILT_IN
) -> list[dict[str, Any]]:
    """Train and evaluate every combination of a grid; returns the rows of sweep.csv.

    `folds` are grouped folds over all clips, each the test part once (0: the splits as they
    are). Finished members are left as they are, unfinished ones go on. Raises `VdError`
    after the last member if one of them failed.
    """
    folder = config.run.checkpoint_dir
    members = list(member_configs(config, grid, folds))
    _check_members(config, members, plugins)
    if compiled := sorted(set(grid) - set(StepNumbers._fields)):
        say(f"note: a step is compiled for each value of {', '.join(compiled)}")

    def of_folds(videos: Sequence[Video]) -> list[Sequence[Video]]:
        if not folds:
            return [videos]
        return list(fold_splits(videos, folds, config.splits.split_seed))

    def check_members(videos: Sequence[Video], seen: Seen) -> None:
        by_fold = of_folds(videos)  # too many folds are an error before any extraction
        for member in members:
            check_backbone(member.config, by_fold[member.fold or 0], seen)

    data = prepare(config, for_folds if folds else with_splits, check=check_members)
    by_fold = [data.with_splits(videos) for videos in of_folds(data.ledger.usable())]
    if not folds and data.videos != data.given:
        keep_splits(data.videos, config)
    with lock(folder / ".lock", "vd sweep"):
        if config.run.fresh:  # they describe members that are deleted next
            for name in _SUMMARIES:
                (folder / name).unlink(missing_ok=True)
        errors = _train_members(data, by_fold, members, plugins)
        rows = [_row(member, grid) for member in members]
        write_csv(folder / "sweep.csv", rows)
    for name, error in errors.items():
        raise VdError(
            f"{len(errors)} of {len(members)} members failed; {name}: {error}"
        )
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
        kind = kinds[name]
        parse = {"true": True, "false": False}.__getitem__ if kind is bool else kind
        try:
            parsed = [parse(text.strip()) for text in values.split(",")]
            grid[name] = list(dict.fromkeys(parsed))
        except (KeyError, ValueError):
            raise VdError(
                f"--set {assignment}: a value is not a valid {kind.__name__}; give "
                "NAME=VALUE,VALUE."
            ) from None
    return grid


def member_configs(config: Config, grid: Grid, folds: int = 0) -> Iterator[SweepMember]:
    """The members of a sweep."""
    others = [name for name in grid if name not in StepNumbers._fields]
    # a fixed order, so that a name does not depend on the order of the flags
    names = [name for name in StepNumbers._fields if name in grid] + sorted(others)
    numbers: Sequence[int | None] = range(folds) if folds else [None]
    for fold, *values in product(numbers, *(grid[name] for name in names)):
        chosen = dict(zip(names, values, strict=True))
        words = [f"fold-{fold}"] if fold is not None else []
        for key, value in chosen.items():
            text = str(value).removesuffix(".0").lower()
            words.append(f"{key.replace('_', '-')}-{text}")
        name = "_".join(words) or "member"
        run = replace(config.run, checkpoint_dir=config.run.checkpoint_dir / name)
        yield SweepMember(name, fold, replace(with_settings(config, chosen), run=run))


def _check_members(
    config: Config, members: Sequence[SweepMember], plugins: Plugins
) -> None:
    """Raise `VdError`, before anything slow, for a wrong setting of a member."""
    folder = config.run.checkpoint_dir
    if (folder / "config.json").exists():
        raise VdError(
            f"--checkpoint-dir {folder} is the folder of a run; name another one for its "
            "members."
        )
    for member in members:
        check(member.config, plugins)


def _train_members(
    data: Data,
    by_fold: Sequence[Data],
    members: Sequence[SweepMember],
    plugins: Plugins,
) -> dict[str, VdError]:
    """Train and evaluate each unfinished member; returns the errors of those that failed."""
    from vd.training.feature_set import TRAINED_SHARE, FeatureSet
    from vd.training.refit import fewest_to_train, parts_to_use

    @lru_cache(maxsize=1)  # another batch size may take other devices
    def features(devices: Any) -> FeatureSet:
        usable = data.ledger.usable()
        return FeatureSet(usable, data.store, devices, TRAINED_SHARE)

    # one batch for all, which the smallest fold can fill
    fewest = min(
        fewest_to_train(member.config, by_fold[member.fold or 0].parts())
        for member in members
    )
    errors: dict[str, VdError] = {}
    finished = 0
    for number, (name, fold, config) in enumerate(members, start=1):
        of_fold = by_fold[fold or 0]
        with lock(config.run.checkpoint_dir / ".lock", "vd sweep"):
            opened = open_run(config, plugins, of_fold, fewest=fewest)
            if opened is None:
                finished += 1
                continue
            say(f"member {number} of {len(members)}: {name}")
            everything = features(tuple(opened.devices))
            sets = {
                split: everything.part(clips)
                for split, clips in parts_to_use(config, of_fold.parts()).items()
            }
            try:
                train_and_evaluate(config, plugins, sets, opened)
            except VdError as error:
                say(f"{name} failed: {error}")
                errors[name] = error
    say(f"{len(members)} members, {finished} of them finished before")
    return errors


def _row(member: SweepMember, grid: Grid) -> dict[str, Any]:
    """A member's row of sweep.csv: its settings, and the figures of its test part."""
    settings = vars(member.config.model) | vars(member.config.training)
    path = member.config.run.checkpoint_dir / "evaluation_test.json"
    remedy = "delete it, and the same command evaluates again"
    result = read_json(path, remedy) if path.exists() else {}
    return {
        "member": member.name,
        **{setting: settings[setting] for setting in grid},
        **{key: result.get(key) for key in _SHOWN},
    }


def crossval(
    config: Config,
    folds: int,
    seeds: Sequence[int] = (),
    cross_datasets: Sequence[Path] = (),
    plugins: Plugins = BUILT_IN,
) -> dict[str, Any]:
    """Train and test every fold with every seed; returns the content of crossval.json.

    Without `seeds` the run's own is the only one.
    """
    grid = {"seed": list(dict.fromkeys(seeds)) or [config.training.seed]}
    configs = _configs(config, cross_datasets)
    for name, one in configs.items():
        if cross_datasets:
            say(f"cross-validation of {name}:")
        sweep(one, grid, folds, plugins)
    results = {
        name: _write(one, member_configs(one, grid, folds))
        for name, one in configs.items()
    }
    result = next(iter(results.values()))
    if cross_datasets:
        others = [str(path.absolute()) for path in cross_datasets]
        matrix = _matrix(configs, results)
        result = {**result, "cross_datasets": others, "matrix": matrix}
        write_json(config.run.checkpoint_dir / "crossval.json", result)
    return result


def crossval_adapted(
    config: Config, settings: AdaptConfig, folds: int, seeds: Sequence[int] = ()
) -> dict[str, Any]:
    """`crossval` of `vd adapt`: every fold and seed has networks of its own."""
    from vd.training.adapt import image_config

    grid = {"seed": list(dict.fromkeys(seeds)) or [config.training.seed]}
    members = list(member_configs(config, grid, folds))
    for member in members:
        check_adaptation(member.config, settings)
    split_seed = config.splits.split_seed

    def check_folds(videos: Sequence[Video], _: Seen) -> None:
        for fold in fold_splits(videos, folds, split_seed):
            check_parts(config, fold)

    first = image_config(members[0].config, settings, settings.streams[0])
    data = prepare(first, for_folds, check=check_folds)
    by_fold = list(fold_splits(data.ledger.usable(), folds, split_seed))
    with lock(config.run.checkpoint_dir / ".lock", "vd crossval"):
        for member in members:
            say(f"{member.name}:")
            with lock(member.config.run.checkpoint_dir / ".lock", "vd crossval"):
                of_fold = data.with_splits(by_fold[member.fold or 0])
                adapt_prepared(member.config, settings, of_fold)
        return _write(config, members)


def _configs(config: Config, others: Sequence[Path]) -> dict[str, Config]:
    """The settings on every data set, by its name; a wrong path of another fails here."""
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
        folder = config.run.checkpoint_dir / f"on-{name}"
        configs[name] = replace(
            config,
            data=replace(config.data, dataset_path=path),
            splits=replace(config.splits, splits_file=None),  # of the first data set
            run=replace(config.run, checkpoint_dir=folder),
        )
    for one in list(configs.values())[1:]:
        read_manifest(one.data, one.decode)
    return configs


def _write(config: Config, members: Iterable[SweepMember]) -> dict[str, Any]:
    """Pool the members' predictions of one data set into its files."""
    from vd.evaluation.crossval import write_crossval
    from vd.evaluation.predictions import read_run

    folder = config.run.checkpoint_dir
    tested = [read_run(one.config.run.checkpoint_dir, one.fold) for one in members]
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
    say(f"written: {path}, {folder / 'predictions.csv'}")
    return result


def _matrix(
    configs: Mapping[str, Config], results: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The members of every data set tested on every other; writes matrix.csv."""
    from vd.evaluation.cross_dataset import cell, evaluate_members_on, own_cell
    from vd.evaluation.crossval import flat_row
    from vd.evaluation.predictions import read_members

    matrix = []
    for trained, own in results.items():
        members = read_members(configs[trained].run.checkpoint_dir)
        for tested, other in configs.items():
            if tested == trained:
                figures = own_cell(own, len(members))
            else:
                figures = cell(evaluate_members_on(members, other.data, tested))
            matrix.append({"trained_on": trained, "tested_on": tested, **figures})
    first = next(iter(configs.values()))
    rows = [flat_row(row) for row in matrix]
    write_csv(first.run.checkpoint_dir / "matrix.csv", rows)
    for row in matrix:
        text = (
            f"trained on {row['trained_on']}, tested on {row['tested_on']}: accuracy "
            f"{shown('accuracy', row['accuracy'])}, {row['n']} clips"
        )
        if fallen := row["collapsed"]:
            text += (
                f"; CLASS COLLAPSE in {fallen} of {row['members']} members: {COLLAPSE}"
            )
        say(text)
    return matrix
