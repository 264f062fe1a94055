"""`vd report`: one run or one cross-validation as a page.

1. The files of the folder are read and checked; nothing is trained or scored again.
2. The worst mistakes are looked at, where the videos are still there.
3. The template is filled in; the page is written whole or not at all.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vd.console import duration
from vd.errors import VdError
from vd.evaluation.cross_dataset import dataset_name
from vd.evaluation.crossval import check_told
from vd.evaluation.curves import curve
from vd.evaluation.matrix import check_matrix
from vd.evaluation.results import pooled_by_seed, read_results
from vd.files import read_json, write_text
from vd.report import pictures
from vd.report.facts import RunFacts, checked, read_facts
from vd.report.mistakes import Mistake, worst
from vd.report.page import ledger_rows, page
from vd.report.settings import all_settings, command, crossval_command
from vd.report.strips import Shown, show
from vd.report.words import crossval_verdict, loss, run_verdict

MISTAKES = 12
_MOST_FAULTY = 50  # files that the page names; ledger.csv has all
_AGAIN = "run its vd crossval command again to write it again"


def report(
    folders: Sequence[Path],
    out: Path | None = None,
    mistakes: int = MISTAKES,
    dataset_path: Path | None = None,
) -> Path:
    """Write the page of a run or a cross-validation; returns where it is.

    `mistakes` clips are shown with their frames (0: the quick page, with a table);
    `dataset_path` says where the data set has moved. Raises `VdError` for a folder that is
    unfinished, damaged, or none of the two.
    """
    if not folders:
        raise VdError(
            "vd report was given no folder; name a run or a cross-validation."
        )
    if mistakes < 0:
        raise VdError(f"--mistakes is {mistakes}; give 0 or more.")
    if dataset_path is not None and not dataset_path.exists():
        raise VdError(
            f"--dataset-path {dataset_path} does not exist; leave it out, or name the place "
            "where the data set is now."
        )
    if len(folders) > 1:
        raise VdError(
            f"vd report makes the page of one folder, not of {len(folders)}; compare them "
            f"with vd compare {' '.join(map(str, folders))} --out DIR."
        )
    path = out or folders[0] / "report.html"
    if path.is_dir():
        raise VdError(f"--out {path} is a folder; name a file in it.")
    if path.suffix.casefold() not in (".html", ".htm"):
        raise VdError(f"--out {path} is to be a page; let its name end in .html.")
    if (folders[0] / "config.json").exists():
        made = run_page(read_facts(folders[0]), mistakes, dataset_path)
    else:
        made = _crossval_page(folders[0], mistakes, dataset_path)
    write_text(path, made)
    return path


def write_quick(run_dir: Path) -> None:
    """The page that training leaves: of the folder alone, so the same files, the same bytes."""
    write_text(run_dir / "report.html", run_page(read_facts(run_dir), 0, None))


def run_page(facts: RunFacts, mistakes: int, dataset_path: Path | None) -> str:
    """The page of a run."""
    told, said = facts.test, facts.member.predictions
    hours = told.get("nonviolent_hours")
    found = worst([facts.member])
    runs = {facts.folder: facts}
    with checked(
        facts.folder / "evaluation_test.json", "run vd evaluate on the run again"
    ):
        return page(
            "run.html.j2",
            title=f"Report of {facts.folder.resolve().name}",
            dataset=dataset_name(facts.config.data.dataset_path),
            facts=facts,
            verdict=run_verdict(facts),
            points=told.get("operating_points"),
            length=duration(3600 * hours) if hours else None,
            slices=told.get("slices"),
            curves=pictures.curves(facts.rows),
            test=pictures.of_test(said.labels_N, said.probability_N, told),
            of_fold=re.match(r"fold-\d+", facts.folder.resolve().name) is not None,
            command=command(facts.described),
            **_shared([facts], found, _shown(found, runs, mistakes, dataset_path)),
            quick=mistakes == 0,
        )


def _shared(
    runs: Sequence[RunFacts],
    found: Sequence[Mistake],
    shown: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the pages of a run and of a cross-validation have in common."""
    first = runs[0]
    faulty = [row for row in first.ledger if row["outcome"] != "used"]
    return {
        "mistakes": len(found),
        "shown": shown,
        "ledger": ledger_rows(first.described),
        "loss": loss(first.described),
        "faulty": faulty[:_MOST_FAULTY],
        "more_faulty": max(len(faulty) - _MOST_FAULTY, 0),
        "settings": all_settings(first.described),
    }


def _shown(
    found: Sequence[Mistake],
    runs: Mapping[Path, RunFacts],
    mistakes: int,
    dataset_path: Path | None,
) -> list[dict[str, Any]]:
    """The worst mistakes as the page shows them; in the quick page they are a table."""
    if mistakes == 0:
        made = [Shown(mistake) for mistake in found[:MISTAKES]]
    else:
        made = show(found[:mistakes], runs, dataset_path)
    return [
        {
            "mistake": one.mistake,
            "strip": one.strip and pictures.inline(one.strip, "jpeg"),
            "timeline": one.timeline and pictures.inline(one.timeline, "png"),
            "word": one.word,
        }
        for one in made
    ]


def _crossval_page(folder: Path, mistakes: int, dataset_path: Path | None) -> str:
    """The page of a cross-validation."""
    members = read_results(folder)
    pooled = pooled_by_seed(members)
    path = folder / "crossval.json"
    values = read_json(path, _AGAIN)
    runs = {member.run_dir: read_facts(member.run_dir) for member in members}
    found = worst(members)
    first = runs[members[0].run_dir]
    again = command(first.described) and crossval_command(
        first.described, values, str(first.config.run.checkpoint_dir.parent)
    )
    shown = _shown(found, runs, mistakes, dataset_path)
    with checked(path, _AGAIN):
        check_told(values, members, path, _AGAIN)
        for row in values.get("matrix", []):
            check_matrix(folder, dataset_name(first.config.data.dataset_path), row)
        return page(
            "crossval.html.j2",
            title=f"Report of {folder.resolve().name}",
            dataset=dataset_name(first.config.data.dataset_path),
            values=values,
            described=first.described,
            verdict=crossval_verdict(values, first.described),
            curves=pictures.bands({folder.resolve().name: curve(list(runs))}),
            pictures=pictures.of_pooled(pooled, values["per_seed"]),
            command=again,
            **_shared(list(runs.values()), found, shown),
            quick=mistakes == 0,
        )
