"""What the files of a run folder say, checked: a report computes no figure a second way."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from vd.config import Config
from vd.errors import VdError, damage
from vd.evaluation.operating_points import operating_points
from vd.evaluation.predictions import cluster_names
from vd.evaluation.restore import read_calibration
from vd.evaluation.results import Member, agrees, read_run
from vd.files import read_csv, read_json
from vd.metrics.binary import METRICS, evaluation_metrics
from vd.metrics.calibration import Calibration
from vd.training.log import overfits, read_metrics
from vd.training.run_folder import read_config, read_settings, videos_of
from vd.training.validation import EarlyStopping

EVALUATE = "run vd evaluate on the run to write it again"
_TRAIN = "put back the file that training wrote, or train the run again"
_NUMBERS = "threshold", "temperature", *METRICS
_OWN = "train", "val", "test", "all"  # whose clips' contents the run knows
_SAID = "split", "n", "n_violent", "groups", "resampled_groups", "collapsed", "warnings"
_COUNTED = "split", "class", "found", "used", "partial", "quarantined", "reasons"
_CURVES = (
    "train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_recall_violent",
    "val_recall_nonviolent", "learning_rate",
)  # fmt: skip


@dataclass(frozen=True)
class RunFacts:
    """A finished run: what its files hold."""

    folder: Path
    described: dict[str, Any]  # config.json
    config: Config
    calibration: Calibration
    evaluations: dict[str, dict[str, Any]]  # test, val, then others by file name
    rows: list[dict[str, Any]]  # metrics.jsonl
    ledger: list[dict[str, str]]
    member: Member

    @property
    def test(self) -> dict[str, Any]:
        """The content of evaluation_test.json."""
        return self.evaluations["test"]

    @property
    def stopping(self) -> EarlyStopping:
        """The run's early stopping, told its epochs again."""
        settings = self.config.training
        stopping = EarlyStopping(
            settings.early_stopping_metric,
            settings.early_stopping_patience,
            settings.early_stopping_min_delta,
        )
        for row in self.rows:
            stopping = stopping.update(row["epoch"], row[stopping.metric])
        return stopping

    @property
    def overfitting_since(self) -> int | None:
        """The first epoch of which training warned, None when it did not."""
        for count, row in enumerate(self.rows, 1):
            if overfits(self.rows[:count]):
                return int(row["epoch"])
        return None


def read_facts(run_dir: Path) -> RunFacts:
    """Read a run folder; raises `VdError` for an unfinished or a damaged one."""
    described = read_config(run_dir)
    config = read_settings(run_dir)
    member = read_run(run_dir)  # says what an unfinished run lacks
    if not (run_dir / "calibration.json").exists():
        raise VdError(
            f"{run_dir} lacks calibration.json, so its training has not ended; run its "
            "command again to go on."
        )
    with checked(run_dir / "config.json", _TRAIN):
        for row in described["ledger"]["per_split_and_class"]:
            _ = [row[key] for key in _COUNTED]
        for key in ("gap", "p", "lost_violent", "lost_nonviolent"):
            _number(described["ledger"]["loss_gap"], key)
        _ = dict(described["packages"]), described["git_revision"], described["devices"]
    evaluations, fitted = _evaluations(run_dir), read_calibration(run_dir)
    for name, told in evaluations.items():
        said = member if name == "test" else read_run(run_dir, name=name)
        if told["split"] in _OWN:
            _check_told(told, said, fitted, name)
    videos_of(run_dir, config.data.dataset_path)  # splits.csv, too, is whole
    return RunFacts(
        run_dir, described, config, fitted, evaluations, _metrics(run_dir),
        _ledger(run_dir), member,
    )  # fmt: skip


def _evaluations(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Every evaluation_<name>.json: those of test and validation first."""
    made = {}
    paths = sorted(run_dir.glob("evaluation_*.json"))
    first = {"test": 0, "val": 1}
    for path in sorted(paths, key=lambda p: first.get(_name(p), 2)):
        values = read_json(path, EVALUATE)
        with checked(path, EVALUATE):
            _ = [values[key] for key in _SAID]
            for key in _NUMBERS:
                _number(values, key)
            for key in METRICS:
                _interval(values[f"{key}_ci95"])
            if not 0 <= values["n_violent"] <= values["n"] or values["n"] < 1:
                raise ValueError("n_violent is no part of n")
        made[_name(path)] = values
    return made


def _check_told(
    told: Mapping[str, Any], member: Member, fitted: Calibration, name: str
) -> None:
    """Raise `VdError` unless an evaluation tells what its predictions give.

    But for alarms an hour and slices, which need the lengths and kinds of clips.
    """
    said = member.predictions
    arrays = said.labels_N, said.probability_N
    cluster_N = cluster_names(said.paths, said.groups, member.ids)
    counted = evaluation_metrics(*arrays, cluster_N, member.threshold)
    warnings = set(counted.pop("warnings"))
    points = operating_points(*arrays, cluster_N, np.zeros(len(said.paths)), fitted)
    counted["operating_points"] = {
        name: point and {k: v for k, v in point.items() if "per_hour" not in k}
        for name, point in points.items()
    }
    path = member.run_dir / f"evaluation_{name}.json"
    with checked(path, EVALUATE):
        for key, value in counted.items():
            if not agrees(told.get(key, value), value):
                raise ValueError(f"its {key} are not those of predictions_{name}.csv")
        if not warnings <= set(told["warnings"]):
            raise ValueError("it lacks a warning that the predictions give")


def _name(path: Path) -> str:
    """The name of an evaluation, from that of its file."""
    return path.stem.removeprefix("evaluation_")


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The epochs of metrics.jsonl; raises `VdError` when a line lacks or is damaged."""
    path = run_dir / "metrics.jsonl"
    rows = read_metrics(run_dir)
    with checked(path, _TRAIN):
        lines = path.read_bytes().splitlines() if path.exists() else []
        if not lines:
            raise ValueError("it has no epoch")
        if len(rows) < len(lines):
            raise ValueError(f"line {len(rows) + 1} is none of ours")
        for row in rows:
            for key in ("epoch", *_CURVES):
                _number(row, key)
    return rows


def _ledger(run_dir: Path) -> list[dict[str, str]]:
    """The rows of ledger.csv."""
    path = run_dir / "ledger.csv"
    rows = read_csv(path)
    with checked(path, _TRAIN):
        if not rows:
            raise ValueError("it has no row")
        for row in rows:
            float(row["duration"])
            if None in row.values():  # as csv fills a cut line
                raise ValueError("a line is cut")
    return rows


@contextmanager
def checked(path: Path, remedy: str) -> Iterator[None]:
    """Turn what damaged content raises in the block into one sentence."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, TemplateError) as error:
        raise VdError(f"{path} is damaged ({damage(error)}); {remedy}.") from error


def _number(values: Mapping[str, Any], key: str) -> None:
    """Raise `ValueError` unless the value is a number, or None: undefined."""
    value = values[key]
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float)
    ):
        raise ValueError(f"{key} is {value!r}")


def _interval(value: Any) -> None:
    """Raise unless a value is [low, high], or None: not known."""
    if value is not None:
        low, high = value
        if not low <= high:
            raise ValueError(f"{value!r} is no interval")
