"""What the files of a finished run say, and what limits its figures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vd.config import Config, DataConfig, to_json
from vd.data.ledger import is_excessive
from vd.data.manifest import CLASSES
from vd.evaluation.predictions import Member, read_run
from vd.files import read_json
from vd.metrics.binary import COLLAPSE
from vd.models.losses import imbalance_warning
from vd.report.page import percent
from vd.training.log import EarlyStopping, overfits, read_metrics
from vd.training.run_folder import read_config, read_settings

_FIRST = {"evaluation_test": 0, "evaluation_val": 1}  # then the others by name


@dataclass(frozen=True)
class RunFacts:
    """The files of a run folder, read."""

    folder: Path
    described: dict[str, Any]  # config.json
    config: Config
    evaluations: dict[str, dict[str, Any]]  # evaluation_<name>.json by name
    rows: list[dict[str, Any]]  # metrics.jsonl, an epoch each
    member: Member  # the test predictions

    @property
    def stopping(self) -> EarlyStopping:
        """Early stopping at the end of the run: its best and its last epoch."""
        settings = self.config.training
        stopping = EarlyStopping(
            settings.early_stopping_metric,
            settings.early_stopping_patience,
            settings.early_stopping_min_delta,
        )
        for row in self.rows:
            stopping = stopping.update(row["epoch"], row.get(stopping.metric))
        return stopping


def read_facts(run_dir: Path) -> RunFacts:
    """Read a run folder; raises `VdError` when the run is unfinished or damaged."""
    return RunFacts(
        run_dir,
        read_config(run_dir),
        read_settings(run_dir),
        member=read_run(run_dir),  # which says whether a run is unfinished
        evaluations=_evaluations(run_dir),
        rows=read_metrics(run_dir),
    )


def _evaluations(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The content of every evaluation_<name>.json."""
    paths = sorted(
        run_dir.glob("evaluation_*.json"),
        key=lambda path: (_FIRST.get(path.stem, 2), path.stem),
    )
    remedy = "run vd evaluate on the run to write it again"
    return {
        path.stem.removeprefix("evaluation_"): read_json(path, remedy) for path in paths
    }


_REMEDY = "check the labels, or train with another --focal-alpha or --learning-rate"


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


def settings(described: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Flag, value and default of every setting in a config.json."""
    defaults = to_json(Config(data=DataConfig(dataset_path=Path())))
    defaults["data"]["dataset_path"] = None  # it has none
    return [
        (f"--{name.replace('_', '-')}", value, defaults[group].get(name))
        for group, values in described["settings"].items()
        for name, value in values.items()
    ]
