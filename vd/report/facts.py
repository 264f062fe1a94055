"""What the files of a finished run say; nothing is counted a second time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vd.config import Config
from vd.evaluation.predictions import Member, read_run
from vd.files import read_json
from vd.training.log import read_metrics
from vd.training.run_folder import read_config, read_settings
from vd.training.validation import EarlyStopping

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
