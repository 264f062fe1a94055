"""`vd report`: a run or a cross-validation as one page, which shows what its files say.

Nothing is trained, scored or counted again; the misclassified clips are looked at where
their videos are still there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vd import plots
from vd.console import duration
from vd.data.manifest import CLASSES
from vd.errors import VdError
from vd.evaluation.compare import PANELS, curve
from vd.evaluation.cross_dataset import dataset_name
from vd.evaluation.predictions import Predictions, pooled_by_seed, read_results
from vd.files import read_json, write_text
from vd.metrics.binary import METRICS
from vd.report import images
from vd.report.facts import RunFacts, crossval_limits, read_facts, run_limits, settings
from vd.report.page import Picture, decimal, render
from vd.training.run_folder import videos_of

MISTAKES = 12


class Mistake(NamedTuple):
    """A clip misclassified in `wrong` of the `times` that it was tested."""

    name: str
    truth: str
    probability: float  # of violence, mean over the times
    wrong: int
    times: int


def report(
    folder: Path,
    out: Path | None = None,
    mistakes: int = MISTAKES,
    dataset_path: Path | None = None,
) -> Path:
    """Write the page of a run or a cross-validation; returns where it is.

    `mistakes` clips are shown with their frames (0: the quick page, without);
    `dataset_path` says where the data set has moved. Raises `VdError` for a folder that is
    neither of the two, or unfinished, or has a damaged file.
    """
    path = out or folder / "report.html"
    if path.suffix.casefold() not in (".html", ".htm"):
        raise VdError(f"--out {path} must end in .html; name such a file.")
    if (folder / "config.json").exists():
        page = _run_page(read_facts(folder), mistakes, dataset_path)
    else:
        page = _crossval_page(folder, mistakes, dataset_path)
    write_text(path, page)
    return path


def write_quick(run_dir: Path) -> None:
    """Write the page that training leaves: of the folder alone, so without frames."""
    write_text(run_dir / "report.html", _run_page(read_facts(run_dir), 0, None))


def _run_page(facts: RunFacts, mistakes: int, dataset_path: Path | None) -> str:
    """The page of a run."""
    record = facts.evaluations["test"]
    pooled = pooled_by_seed([facts.member])
    hours = record.get("nonviolent_hours")
    title = f"Confusion at threshold {decimal(record.get('threshold'))}"
    curves = plots.learning_curves({"": facts.rows})
    return _render(
        "run.html.j2",
        facts,
        dataset_path,
        _mistakes(list(pooled.values())),
        mistakes,
        title=f"Report of {facts.folder.resolve().name}",
        tested=record.get("n"),
        limits=run_limits(facts),
        nonviolent=duration(3600 * hours) if hours else None,
        curves=[images.drawn(curves, f"Learning curves over {len(facts.rows)} epochs")],
        pictures=images.of_tested(pooled, title),
    )


def _crossval_page(folder: Path, mistakes: int, dataset_path: Path | None) -> str:
    """The page of a cross-validation; data and settings are those of its first member."""
    members = read_results(folder)
    remedy = "run its vd crossval command again to write it again"
    values = read_json(folder / "crossval.json", remedy)
    first = read_facts(members[0].run_dir)
    pooled = pooled_by_seed(members)
    name = folder.resolve().name
    curves = plots.bands({name: curve([one.run_dir for one in members])}, PANELS)
    return _render(
        "crossval.html.j2",
        first,
        dataset_path,
        _mistakes(list(pooled.values())),
        mistakes,
        title=f"Report of {name}",
        values=values,
        tested=values.get("n"),
        limits=crossval_limits(values, first.described),
        curves=[images.drawn(curves, "Validation curves over members")],
        pictures=images.of_tested(pooled, "Confusion, each clip once a seed"),
    )


def _render(
    template: str,
    facts: RunFacts,
    dataset_path: Path | None,
    mistakes: Sequence[Mistake],
    most: int,
    **values: Any,
) -> str:
    """A page, with what runs and cross-validations have in common."""
    shown = mistakes[: most or MISTAKES]
    return render(
        "vd.report",
        template,
        {
            "dataset": dataset_name(facts.config.data.dataset_path),
            "facts": facts,
            "described": facts.described,
            "metrics": METRICS,
            "mistakes": len(mistakes),
            "shown": shown,
            "frames": _frames(shown, facts, dataset_path) if most else {},
            "quick": most == 0,
            "settings": settings(facts.described),
            **values,
        },
    )


def _mistakes(seeds: Sequence[Predictions]) -> list[Mistake]:
    """The misclassified clips: wrong in most seeds first, then farthest from the truth."""
    first = seeds[0]
    wrong_N = sum(one.predicted_N != (one.labels_N == 1) for one in seeds)
    probability_N = np.mean([one.probability_N for one in seeds], axis=0)
    distance_N = np.abs(probability_N - first.labels_N)
    order = sorted(
        np.flatnonzero(wrong_N),
        key=lambda i: (-wrong_N[i], -distance_N[i], first.paths[i]),
    )
    return [
        Mistake(
            first.paths[i],
            CLASSES[first.labels_N[i]],
            float(probability_N[i]),
            int(wrong_N[i]),
            len(seeds),
        )
        for i in order
    ]


def _frames(
    mistakes: Sequence[Mistake], facts: RunFacts, dataset_path: Path | None
) -> dict[str, Picture]:
    """Frames of the clips by name; any run of a cross-validation knows where all are."""
    root = dataset_path or facts.config.data.dataset_path
    videos = {video.name: video for video in videos_of(facts.folder, root)}
    chosen = [videos[mistake.name] for mistake in mistakes]
    return images.frame_strips(chosen, facts.config.decode)
