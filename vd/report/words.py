"""What a page says in words: what limits its figures, and the command that gives them again."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from vd.config import Config, DataConfig, to_json
from vd.data.ledger import is_excessive
from vd.metrics.binary import COLLAPSE
from vd.report.facts import RunFacts
from vd.report.page import percent

_REMEDY = "check the labels, or train with another --focal-alpha or --learning-rate"
_PATHS = "dataset_path", "cache_dir", "checkpoint_dir"
_OF_ONE_START = (  # how a run was started, which its repetition does not need
    "fresh", "profile", "resplit", "retry_quarantined", "coordinator_address",
    "num_processes", "process_id",
)  # fmt: skip


def run_limits(facts: RunFacts) -> list[str]:
    """What limits the test figures of a run, the gravest first."""
    record, stopping = facts.evaluations["test"], facts.stopping
    limits = []
    if record.get("collapsed"):
        limits.append(f"CLASS COLLAPSE: {COLLAPSE}; {_REMEDY}")
    limits += _constant(record, record.get("accuracy"), record.get("accuracy_ci95"))
    limits += _loss_gap(facts.described)
    limits += record.get("warnings", [])
    if stopping.best_epoch == stopping.epoch:
        limits.append("the last epoch was the best; more --epochs may give more")
    return limits


def crossval_limits(
    values: Mapping[str, Any], described: Mapping[str, Any]
) -> list[str]:
    """The same of a cross-validation; `described` is the config.json of a member."""
    accuracy = values["over_seeds"]["accuracy"]
    return [
        *_constant(values, accuracy["mean"], accuracy["ci95"]),
        *_loss_gap(described),
        *values.get("warnings", []),
    ]


def _constant(record: Mapping[str, Any], accuracy: Any, ci95: Any) -> Iterator[str]:
    """A sentence when always answering the larger class may be as accurate."""
    if not record.get("n") or accuracy is None:
        return
    share = record.get("n_violent", 0) / record["n"]
    name = "violent" if share >= 0.5 else "non-violent"
    share = max(share, 1 - share)
    if accuracy <= share or (ci95 and ci95[0] <= share):
        yield (
            f"the accuracy is not shown to be above {percent(share)}, which always "
            f"answering {name} gives; look at ROC AUC, and add test clips"
        )


def _loss_gap(described: Mapping[str, Any]) -> Iterator[str]:
    """A sentence when one class lost far more files, whatever --max-loss-gap was."""
    gap = described["ledger"]["loss_gap"]
    if is_excessive(gap, DataConfig.max_loss_gap):
        yield (
            f"LOSS GAP: {percent(gap['lost_violent'])} of the violent and "
            f"{percent(gap['lost_nonviolent'])} of the non-violent files were quarantined "
            f"(Fisher's p = {gap['p']:.1g}), and the figures are of the rest; repair or "
            "replace the files that the ledger names"
        )


class Setting(NamedTuple):
    """One setting of a run, and the default of `vd train`; paths have none."""

    name: str
    value: Any
    default: Any

    @property
    def flag(self) -> str:
        """Its flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def words(self) -> str:
        """Flag and value as a shell reads them."""
        if isinstance(self.value, bool):
            return self.flag if self.value else f"--no-{self.flag[2:]}"
        values = self.value if isinstance(self.value, list) else [self.value]
        return f"{self.flag} {shlex.join(map(str, values))}"


def settings(described: Mapping[str, Any]) -> list[Setting]:
    """Every setting in a config.json, in the order of `vd.config`."""
    defaults = Config(data=DataConfig(dataset_path=Path()))
    return [
        Setting(name, value, None if name in _PATHS else usual.get(name))
        for group in fields(Config)
        for usual in [to_json(getattr(defaults, group.name))]
        for name, value in described["settings"][group.name].items()
    ]


def train_command(described: Mapping[str, Any]) -> str | None:
    """The `vd train` command of a run; None with a user's own loss or augmentation."""
    return _command("vd train", described, _OF_ONE_START, {})


def crossval_command(
    described: Mapping[str, Any], values: Mapping[str, Any], folder: Path
) -> str | None:
    """The `vd crossval` command; `described` is the config.json of any member."""
    more = {
        "checkpoint_dir": str(folder),
        "folds": values["folds"],
        "seeds": values["seeds"],
    }
    if others := values.get("cross_datasets"):
        more["cross_dataset"] = others
    left_out = (*_OF_ONE_START, "checkpoint_dir", "seed")
    return _command("vd crossval", described, left_out, more)


def _command(
    verb: str,
    described: Mapping[str, Any],
    left_out: tuple[str, ...],
    more: Mapping[str, Any],
) -> str | None:
    """A command with the settings that are not the defaults, and then `more`."""
    identity = described["identity"]
    if _is_own(identity["loss"]) or _is_own(identity.get("augmentation", {})):
        return None  # no flag names these
    flags = [
        one
        for one in settings(described)
        if one.name not in left_out and one.value != one.default
    ]
    head = identity["head"]
    if _is_own(head):
        more = {"head": head["import"], **head.get("settings", {}), **more}
    flags += [Setting(name, value, None) for name, value in more.items()]
    return " \\\n    ".join([verb, *(one.words for one in flags)])


def _is_own(plugin: Mapping[str, Any]) -> bool:
    """Whether a head, loss or augmentation is a user's own, by its import path."""
    path = plugin.get("import")
    return path is not None and not path.startswith("vd.")
