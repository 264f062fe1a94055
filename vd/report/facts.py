"""What the files of a finished run say; nothing is counted a second time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vd.config import Config
from vd.errors import VdError
from vd.evaluation.predictions import Member, read_run
from vd.files import read_csv, read_json
from vd.training.log import read_metrics
from vd.training.run_folder import read_config, read_settings
from vd.training.validation import EarlyStopping

_FIRST = {"test": 0, "val": 1}  # the order of evaluations; others by name


@dataclass(frozen=True)
class RunFacts:
    """The files of a run folder, read."""

    folder: Path
    described: dict[str, Any]  # config.json
    config: Config
    evaluations: dict[str, dict[str, Any]]  # evaluation_<name>.json by name
    rows: list[dict[str, Any]]  # metrics.jsonl, an epoch each
    ledger: list[dict[str, str]]
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
    """Read a run folder; raises `VdError` when a file is missing or damaged."""
    described, config = read_config(run_dir), read_settings(run_dir)
    member = read_run(run_dir)  # which says whether a run is unfinished
    return RunFacts(
        run_dir,
        described,
        config,
        _evaluations(run_dir),
        _present(run_dir / "metrics.jsonl", read_metrics(run_dir)),
        _present(run_dir / "ledger.csv", read_csv(run_dir / "ledger.csv")),
        member,
    )


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file; raises `VdError`, with the remedy, when it holds none."""
    values = read_json(path, remedy)
    if not isinstance(values, dict):
        raise VdError(f"{path} is damaged (it holds no JSON object); {remedy}.")
    return values


def _evaluations(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The content of every evaluation_<name>.json."""
    paths = {
        path.stem.removeprefix("evaluation_"): path
        for path in sorted(run_dir.glob("evaluation_*.json"))
    }
    return {
        name: read_object(paths[name], "run vd evaluate on the run to write it again")
        for name in sorted(paths, key=lambda name: _FIRST.get(name, 2))
    }


def _present(path: Path, rows: list[Any]) -> list[Any]:
    """The rows of a file, which must have some."""
    if not rows:
        raise VdError(
            f"{path} is missing or damaged; put back the file that training wrote, or "
            "train the run again."
        )
    return rows
