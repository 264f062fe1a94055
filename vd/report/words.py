"""What a page says in words: what limits its figures, and the command that gives them again."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from vd.config import Config, DataConfig, to_json
from vd.data.ledger import is_excessive
from vd.data.manifest import CLASSES
from vd.metrics.binary import COLLAPSE
from vd.models.losses import imbalance_warning
from vd.report.facts import RunFacts
from vd.report.page import percent
from vd.training.log import overfits

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
    if overfits(facts.rows):
        limits.append(
            "OVERFITTING at the end: the training loss kept falling while the validation "
            "loss was a tenth above its least; more clips, --dropout-rate or "
            "--weight-decay may help"
        )
    return limits + _imbalance(facts)


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


def _imbalance(facts: RunFacts) -> list[str]:
    """A sentence when the focal loss weighs one class of the training part far more."""
    if not facts.described["identity"]["loss"]["import"].startswith("vd."):
        return []
    clips = dict.fromkeys(CLASSES, 0)
    for row in facts.described["ledger"]["per_split_and_class"]:
        if row["split"] == "train":
            clips[row["class"]] += row["used"] + row["partial"]
    alpha = facts.config.training.focal_alpha
    text = imbalance_warning(clips["violent"], clips["nonviolent"], alpha)
    return [text] if text else []


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
    return _command("vd train", described, _PATHS)


def crossval_command(
    described: Mapping[str, Any], values: Mapping[str, Any], folder: Path
) -> str | None:
    """The `vd crossval` command; `described` is the config.json of any member."""
    seeds = " ".join(map(str, values["seeds"]))
    more = [
        f"--checkpoint-dir {shlex.quote(str(folder))}",
        f"--folds {values['folds']} --seeds {seeds}",
    ]
    if others := values.get("cross_datasets"):
        more.append(f"--cross-dataset {shlex.join(others)}")
    return _command("vd crossval", described, ("dataset_path", "cache_dir"), *more)


def _command(
    verb: str, described: Mapping[str, Any], paths: tuple[str, ...], *more: str
) -> str | None:
    """A command with the paths and the settings that are not the defaults."""
    own = {
        kind: described["identity"][kind]
        for kind in ("head", "loss", "augmentation")
        if not _is_built_in(described["identity"].get(kind, {}).get("import"))
    }
    head = own.pop("head", None)
    if own:  # no flag names these
        return None
    left_out = {*_PATHS, *_OF_ONE_START, *(["seed"] if more else [])}
    chosen = [
        one.words
        for one in settings(described)
        if one.name in paths or (one.name not in left_out and one.value != one.default)
    ]
    if head is not None:
        chosen.append(f"--head {shlex.quote(head['import'])}")
        for name, value in head.get("settings", {}).items():
            chosen.append(Setting(name, value, None).words)
    return " \\\n    ".join([verb, *chosen, *more])


def _is_built_in(path: str | None) -> bool:
    return path is None or path.startswith("vd.")
