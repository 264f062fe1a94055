"""Many runs of one shape as one program: `vd sweep`.

Members differ in seed, fold, or numbers of the loss and the optimizer; every one ends as an
ordinary run folder, equal to that of `vd train` within rounding. What is shared is start-up,
features and compilation. Members train one after the other, or `members_at_once` together;
where that was measured it gained nothing (docs/performance.md).
"""

import resource
import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vd.config import Config, GridConfig
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
from vd.models.parts import BUILT_IN, Parts
from vd.training.opening import Data, Opened, check_devices
from vd.training.run_folder import check_folder

if TYPE_CHECKING:
    from vd.training.feature_set import FeatureSet
    from vd.training.lockstep import Lockstep
    from vd.training.loop import Trained

_AXES = {  # setting by the grid's list of its values
    "seeds": "seed", "learning_rates": "learning_rate", "focal_alphas": "focal_alpha",
    "focal_gammas": "focal_gamma", "label_smoothings": "label_smoothing",
    "grad_clip_norms": "grad_clip_norm", "dropout_rates": "dropout_rate",
}  # fmt: skip
_OF_ALL = (
    "sweep.csv", "crossval.json", "predictions.csv", "matrix.csv", "report.html",
)  # fmt: skip
_SHOWN = "accuracy", "recall_violent", "recall_nonviolent", "roc_auc"


class Run(NamedTuple):
    """One member that is to be trained."""

    config: Config
    sets: dict[str, "FeatureSet"]
    opened: Opened


def sweep(
    config: Config, grid: GridConfig, parts: Parts = BUILT_IN
) -> list[dict[str, Any]]:
    """Train and evaluate all members of a grid; returns the rows of sweep.csv.

    Finished members are left as they are, begun ones go on. Raises `VdError` as `run`
    does, and after all others have ended for the first member that could not go on.
    """
    check_devices(config)
    if grid.folds < 0 or grid.folds == 1:
        raise VdError(
            f"--folds is {grid.folds}; give 2 or more, or 0 for the splits as they are."
        )
    made = list(member_configs(config, grid))
    configs = {name: member for name, _, member in made}
    if len(configs) < len(made):
        raise VdError("the grid names a value twice; name each value of a list once.")
    if config.run.profile:
        raise VdError(
            "--profile traces one run; leave it out, or train that run alone."
        )
    fold_of = {name: fold for name, fold, _ in made}
    for member in configs.values():
        check_folder(member.run.checkpoint_dir)
    data = prepare(config, folds=grid.folds > 0)
    by_fold = [data]
    if grid.folds:
        usable = data.ledger.usable()
        seed = config.splits.split_seed
        by_fold = [data.with_splits(v) for v in fold_splits(usable, grid.folds, seed)]
    elif data.videos != data.given:
        keep_splits(data.videos, config)
    fewest = min(len(fold.parts()["train"]) for fold in by_fold)
    errors: dict[str, BaseException] = {}
    _allow_open_files()
    with ExitStack() as locks:
        runs = {}
        if config.run.fresh:  # what tells of the members that are deleted next
            for told in _OF_ALL:
                (config.run.checkpoint_dir / told).unlink(missing_ok=True)
        for name, member in configs.items():
            locks.enter_context(lock(member.run.checkpoint_dir / ".lock", "vd sweep"))
            of_fold = by_fold[fold_of[name] or 0]
            if (opened := open_run(member, parts, of_fold, fewest=fewest)) is not None:
                runs[name] = member, of_fold, opened
        say(f"{len(configs)} members, {len(configs) - len(runs)} of them finished")
        _say_former(config.run.checkpoint_dir, configs)
        if runs:
            errors = _train_and_evaluate(parts, data, runs, grid.members_at_once)
        rows = [_row(name, member, name in errors) for name, member in configs.items()]
    write_csv(config.run.checkpoint_dir / "sweep.csv", rows)
    for name, error in errors.items():
        raise VdError(
            f"{len(errors)} of {len(rows)} members ended early; {name}: {error}"
        )
    return rows


def _say_former(folder: Path, members: Container[str]) -> None:
    """Name the runs in the folder that are of another grid: they stay."""
    runs = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if former := [name for name in runs if name not in members]:
        say(
            f"note: {len(former)} runs in {folder} are of another grid ({former[0]} for one); "
            "they stay as they are and count in no figure"
        )


def _allow_open_files() -> None:
    """As many as the system lets a process have: every member's lock is one."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):  # where the limit is not a number, as on macOS
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def member_configs(
    config: Config, grid: GridConfig
) -> Iterator[tuple[str, int | None, Config]]:
    """Name, fold and settings of each member."""
    axes = {
        setting: values
        for axis, setting in _AXES.items()
        if (values := getattr(grid, axis))
    }
    folds: Sequence[int | None] = range(grid.folds) if grid.folds else [None]
    for fold, *values in product(folds, *axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        words = [f"fold-{fold}"] if fold is not None else []
        words += [
            f"{key.replace('_', '-')}-{_short(value)}" for key, value in chosen.items()
        ]
        name = "_".join(words) or "member"
        model = config.model
        if "dropout_rate" in chosen:
            model = replace(model, dropout_rate=chosen.pop("dropout_rate"))
        run = replace(config.run, checkpoint_dir=config.run.checkpoint_dir / name)
        training = replace(config.training, **chosen)
        yield name, fold, replace(config, model=model, training=training, run=run)


def _short(value: float) -> str:
    """A value in a member's name; a seed with all its digits."""
    short = str(value) if isinstance(value, int) else f"{value:g}"
    return short if float(short) == value else repr(value)


def _train_and_evaluate(
    parts: Parts,
    data: Data,
    runs: Mapping[str, tuple[Config, Data, Opened]],
    at_once: int,
) -> dict[str, BaseException]:
    """Train the members, `at_once` together, and evaluate each; returns what went wrong."""
    from vd.training.feature_set import TRAINED_SHARE, FeatureSet
    from vd.training.lockstep import Lockstep

    batch_size, devices = next(iter(runs.values()))[2]
    videos = data.ledger.usable()
    everything = FeatureSet(videos, data.store, devices, TRAINED_SHARE)
    made = {
        name: Run(
            config,
            {split: everything.part(clips) for split, clips in of.parts().items()},
            opened,
        )
        for name, (config, of, opened) in runs.items()
    }
    steps = {name: len(run.sets["train"]) // batch_size for name, run in made.items()}
    configs = {name: run.config for name, run in made.items()}
    lockstep = Lockstep(configs, steps, parts, devices)
    errors: dict[str, BaseException] = {}
    left, begun = iter(made.items()), 0
    first = next(iter(configs.values()))
    say_before_training(first, parts, everything, devices)
    while group := dict(islice(left, at_once)):
        begun += len(group)
        say(f"member {begun} of {len(made)}: {', '.join(group)}")
        trained, failed = train_members(parts, group, lockstep)
        for name, best in trained.items():
            say(f"{name}:")
            try:
                evaluate_run(made[name].config, parts, made[name].sets, best)
            except VdError as wrong:
                failed[name] = wrong
        for name, error in failed.items():
            say(f"{name} ended early: {error}")
        errors |= failed
    return errors


def train_members(
    parts: Parts, runs: Mapping[str, Run], lockstep: "Lockstep"
) -> tuple[dict[str, "Trained"], dict[str, BaseException]]:
    """Train each member in a thread of its own; returns the trained, and what went wrong."""
    from vd.training.interruption import Interruption
    from vd.training.loop import Member

    trained: dict[str, Trained] = {}
    errors: dict[str, BaseException] = {}
    lockstep.enter(runs)

    def follow(name: str, run: Run) -> None:
        step = lockstep.step_of(name)
        member = Member(name, step, interruption, alone=len(runs) == 1)
        try:
            trained[name] = train_run(run.config, parts, run.sets, run.opened, member)
        except BaseException as error:  # noqa: BLE001  # raised when all have ended
            errors[name] = error
        finally:
            lockstep.leave(name)

    with Interruption() as interruption:
        threads = [
            threading.Thread(target=follow, args=item, name=item[0])
            for item in runs.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for error in errors.values():
        if not isinstance(error, VdError):
            raise error
    return trained, errors


def _row(name: str, config: Config, failed: bool) -> dict[str, Any]:
    """A member's row of sweep.csv: its settings, and the test part's figures, if any."""
    path: Path = config.run.checkpoint_dir / "evaluation_test.json"
    result = dict.fromkeys(_SHOWN)
    if not failed:
        remedy = "delete it, and the same command evaluates again"
        result = read_json(path, remedy)
        if not isinstance(result, dict) or not set(_SHOWN) <= set(result):
            raise VdError(f"{path} is damaged (it lacks figures); {remedy}.")
    settings = {
        setting: getattr(
            config.model if setting == "dropout_rate" else config.training, setting
        )
        for setting in _AXES.values()
    }
    return {"member": name, **settings, **{key: result[key] for key in _SHOWN}}
