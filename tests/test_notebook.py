import ast
import json
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from vd.config import TrainingConfig
from vd.training.optimizer import warmup_steps

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "learning_curves.ipynb"


def execute(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook, executed over `runs`; a cell that raises fails the test."""
    monkeypatch.setenv("VD_RUNS", os.pathsep.join([*map(str, runs), ""]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=120, resources=where).execute()
    return notebook


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def words(notebook: Any) -> str:
    """All text and tables that the cells show."""
    shown = [
        o.get("text") or o.data.get("text/markdown", "") for o in outputs(notebook)
    ]
    return "\n".join(shown)


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def table_rows(notebook: Any) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in words(notebook).splitlines()
        if line.startswith("|")
    ]


def altered(run: Path, to: Path, **evaluation: Any) -> Path:
    """What the notebook reads of `run`, with other figures in its evaluation."""
    to.mkdir()
    for name in (
        "config.json", "splits.csv", "metrics.jsonl", "predictions_test.csv",
    ):  # fmt: skip
        (to / name).write_bytes((run / name).read_bytes())
    result = json.loads((run / "evaluation_test.json").read_text())
    (to / "evaluation_test.json").write_text(json.dumps(result | evaluation))
    return to


def test_it_shows_what_the_run_folders_say(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained[0] / "run"
    figures = {"accuracy": 0.5, "accuracy_ci95": [0.25, 0.75], "collapsed": True}
    figures |= {"roc_auc": None, "ece": 0.125, "threshold": 2.0}
    other = altered(run, tmp_path / "b", **figures)
    same, under_way = altered(run, tmp_path / "c"), altered(run, tmp_path / "d")
    for name in ("evaluation_test.json", "predictions_test.csv"):
        (under_way / name).unlink()
    notebook = execute([run, other, same, under_way], monkeypatch)

    # curves, bands, confusions, reliabilities
    assert pictures(notebook) == 1 + 1 + 3 + 3
    lines = (run / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["val_loss"] for line in lines]
    best = f"{1 + losses.index(min(losses))} of 3"
    name, shown, text = f"{tmp_path.name}/b", table_rows(notebook), words(notebook)
    (compared,) = (row for row in shown if len(row) == 9 and row[0] == name)
    assert compared[1:4] == [best, "50.0 %", "25.0–75.0 %"]
    assert compared[6:] == ["–", "0.125", "2.000"]
    # No probability reaches 2: the recalls are counted at the run's own threshold.
    assert [name, "violent", "4", "0.0 %", "YES"] in shown
    assert [name, "non-violent", "4", "100.0 %", "YES"] in shown
    assert "not comparable" not in text
    verdicts = [row for row in shown if row[-1] in ("shown", "not shown")]
    assert verdicts[1][:2] == [f"{tmp_path.name}/c", "0.0 points"]
    assert "one training run of each" in text
    assert "not evaluated yet" in text


def test_phases_are_told_by_hand() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    (source,) = (cell.source for cell in cells if "def phases" in cell.source)
    names: dict[str, Any] = {"np": np, "warmup_steps": warmup_steps}
    exec(source.partition("\n\n\n")[0], names)  # noqa: S102  # our own cell
    phases = names["phases"]
    losses = [1.0, 0.8, 0.3, 0.09, 0.05, 0.0, 0.2, 0.3]
    rows = [{"val_loss": loss, "step": 3 * (1 + i)} for i, loss in enumerate(losses)]
    config = TrainingConfig(epochs=20, warmup_epochs=2)
    assert phases(rows, config, 6) == {
        "warmup": (1, 2),
        "rapid": (3, 4),
        "fine-tuning": (5, 6),
        "convergence": (7, 8),
    }
    assert phases(rows[:2], config, 2) == {"warmup": (1, 2)}  # no room for the others


def test_what_the_file_keeps_is_whole_and_tells_of_no_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(o.output_type != "error" for o in outputs(notebook))
    assert all(o.get("name") != "stderr" for o in outputs(notebook))
    runs = 3
    assert pictures(notebook) == 1 + 1 + 2 * runs
    # heads and rows: phases, classes, figures, comparisons with the first
    assert len(table_rows(notebook)) == 4 * 2 + runs + 2 * runs + runs + runs - 1
    assert not any(cell.metadata for cell in notebook.cells)  # no times of execution
    assert not re.search(r"(^|[^\w.])(/|[A-Z]:\\)\w", words(notebook))  # nor full paths


def test_it_defines_no_model() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    tree = ast.parse(re.sub(r"^%.*$", "", code, flags=re.MULTILINE))
    modules = set()
    for node in ast.walk(tree):
        assert not isinstance(node, ast.ClassDef)
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module).partition(".")[0])
    assert modules <= {"IPython", "itertools", "json", "numpy", "os", "pathlib", "vd"}
