"""`vd report`: a run or a cross-validation as one page, which shows what its files say.

Nothing is trained, scored or counted again; the misclassified clips are looked at where
their videos are still there. What a file does not say is a dash on the page.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from vd import plots
from vd.config import Config, DataConfig, from_json, to_json
from vd.console import duration
from vd.data.ledger import is_excessive
from vd.data.manifest import CLASSES
from vd.errors import VdError
from vd.evaluation.compare import PANELS, curve
from vd.evaluation.cross_dataset import dataset_name
from vd.evaluation.evaluate import pictures
from vd.evaluation.paired import worse_than_probe
from vd.evaluation.predictions import (
    PROBE,
    Member,
    Predictions,
    pooled_by_seed,
    read_members,
    trained_splits,
)
from vd.files import read_json, write_text
from vd.metrics.binary import COLLAPSE, METRICS
from vd.models.losses import imbalance_warning
from vd.report import images
from vd.training.log import EarlyStopping, read_metrics
from vd.training.run_folder import read_config, videos_of

DASH = "–"
MISTAKES = 12
_PICTURES = {
    "curves": "Learning curves",
    "confusion": "Confusion matrix of the tested clips",
    "roc": "ROC curve of the tested clips",
    "reliability": "Reliability of the tested clips",
}


class RunFacts:
    """The folder of a finished run, read; raises `VdError` when a file is damaged."""

    def __init__(self, folder: Path) -> None:
        remedy = "run vd evaluate on the run to write it again"
        paths = folder.glob("evaluation_*.json")
        files = {path.stem.removeprefix("evaluation_"): path for path in paths}
        own = "test", "val", PROBE  # in this order, then other data sets
        names = [name for name in own if name in files] + sorted(set(files) - {*own})
        self.folder = folder
        self.described = read_config(folder)
        self.config: Config = from_json(Config, self.described["settings"])
        self.evaluations = {name: read_json(files[name], remedy) for name in names}
        self.rows = read_metrics(folder)  # an epoch each

    @property
    def stopping(self) -> EarlyStopping:
        """Early stopping at the end of the run: its best and its last epoch."""
        settings = self.config.training
        is_phase = "phase" in self.rows[0]  # which has none
        stopping = EarlyStopping(
            "" if is_phase else settings.early_stopping_metric,
            settings.early_stopping_patience,
            settings.early_stopping_min_delta,
        )
        for row in self.rows:
            stopping = stopping.update(row["epoch"], row.get(stopping.metric))
        return stopping


def report(
    folder: Path,
    out: Path | None = None,
    mistakes: int = MISTAKES,
    dataset_path: Path | None = None,
) -> Path:
    """Write the page of a run or a cross-validation; returns where it is.

    `mistakes` clips are shown with their frames (0: the quick page that training leaves,
    of the folder alone); `dataset_path` says where the data set has moved. Raises `VdError` when
    a file of the folder is missing or damaged.
    """
    path = out or folder / "report.html"
    if path.suffix.casefold() not in (".html", ".htm"):
        raise VdError(f"--out {path} must end in .html; name such a file.")
    members = read_members(folder)
    facts = RunFacts(members[0].run_dir)
    pooled = pooled_by_seed(members)
    wrong = _mistakes(list(pooled.values()))
    shown = wrong[: mistakes or MISTAKES]
    values = {
        "title": f"Report of {folder.resolve().name}",
        "dataset": dataset_name(facts.config.data.dataset_path),
        "facts": facts,
        "described": facts.described,
        "metrics": METRICS,
        "defaults": to_json(Config(DataConfig(dataset_path=Path(DASH)))),
        "tested": len(next(iter(pooled.values())).paths),
        "seeds": len(pooled),
        "mistakes": len(wrong),
        "shown": shown,
        "quick": mistakes == 0,
        "frames": _frames(shown, facts, dataset_path) if mistakes else {},
    }
    if members[0].fold is None:
        template, own = "run.html.j2", _of_run(facts)
    else:
        template, own = "crossval.html.j2", _of_crossval(folder, members, pooled)
    own["pictures"] = {
        name: images.picture(content, "png", _PICTURES[name])
        for name, content in own["pictures"].items()
    }
    page = render("vd.report", template, values | own)
    write_text(path, page)
    return path


def _of_run(facts: RunFacts) -> dict[str, Any]:
    """What only the page of a run has; its pictures are those in the folder."""
    hours = facts.evaluations["test"].get("nonviolent_hours")
    paths = {name: facts.folder / f"{name}.png" for name in _PICTURES}
    return {
        "limits": run_limits(facts),
        "nonviolent": duration(3600 * hours) if hours else None,
        "pictures": {name: p.read_bytes() for name, p in paths.items() if p.exists()},
    }


def _of_crossval(
    folder: Path, members: Sequence[Member], pooled: Mapping[int, Predictions]
) -> dict[str, Any]:
    """What only the page of a cross-validation has; its pictures are of all members."""
    remedy = "run its vd crossval command again to write it again"
    values = read_json(folder / "crossval.json", remedy)
    accuracy, first = values["over_seeds"]["accuracy"], RunFacts(members[0].run_dir)
    rows = curve([member.run_dir for member in members])
    seeds = {f"seed {seed}": predictions for seed, predictions in pooled.items()}
    figures = {
        "curves": plots.bands({folder.resolve().name: rows}, PANELS),
        **pictures(seeds, "Confusion at the threshold"),
    }
    return {
        "limits": list(_limits(values, accuracy["mean"], accuracy["ci95"], first)),
        "values": values,
        "pictures": {name: plots.png(figure) for name, figure in figures.items()},
    }


def run_limits(facts: RunFacts) -> list[str]:
    """What limits the test figures of a run, the gravest first."""
    record, stopping = facts.evaluations["test"], facts.stopping
    limits = []
    if record.get("collapsed"):
        limits.append(
            f"CLASS COLLAPSE: {COLLAPSE}; check the labels, or train with another "
            "--focal-alpha or --learning-rate"
        )
    limits += _limits(record, record["accuracy"], record.get("accuracy_ci95"), facts)
    limits += worse_than_probe(facts.evaluations.get(PROBE, {}))
    if stopping.metric and stopping.best_epoch == stopping.epoch:
        limits.append("the last epoch was the best; more --epochs may give more")
    return limits + _imbalance(facts)


def _limits(
    record: Mapping[str, Any], accuracy: float, ci95: Any, facts: RunFacts
) -> Iterator[str]:
    """What limits the figures of a run or a cross-validation, and the warnings of its file."""
    violent = record["n_violent"] / record["n"]
    name, share = max(
        ("violent", violent), ("non-violent", 1 - violent), key=lambda pair: pair[1]
    )
    if accuracy <= share or (ci95 and ci95[0] <= share):
        yield (
            f"the accuracy is not shown to be above {_percent(share)}, which always "
            f"answering {name} gives; look at ROC AUC, and add test clips"
        )
    gap = facts.described["ledger"]["loss_gap"]  # whatever --max-loss-gap was
    if is_excessive(gap, DataConfig.max_loss_gap):
        yield (
            f"LOSS GAP: {_percent(gap['lost_violent'])} of the violent and "
            f"{_percent(gap['lost_nonviolent'])} of the non-violent files were quarantined "
            f"(Fisher's p = {gap['p']:.1g}), and the figures are of the rest; repair or "
            "replace the files that the ledger names"
        )
    yield from record.get("warnings", [])


def _imbalance(facts: RunFacts) -> list[str]:
    """A sentence when the focal loss weighs one class of the training part far more."""
    if not facts.described["identity"]["loss"]["import"].startswith("vd."):
        return []
    clips, trained = (
        dict.fromkeys(CLASSES, 0),
        trained_splits(facts.evaluations.get("val")),
    )
    for row in facts.described["ledger"]["per_split_and_class"]:
        if row["split"] in trained:
            clips[row["class"]] += row["used"] + row["partial"]
    alpha = facts.config.training.focal_alpha
    text = imbalance_warning(clips["violent"], clips["nonviolent"], alpha)
    return [text] if text else []


def _mistakes(seeds: Sequence[Predictions]) -> list[dict[str, Any]]:
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
        {
            "name": first.paths[i],
            "truth": CLASSES[first.labels_N[i]],
            "probability": float(probability_N[i]),  # of violence, mean over seeds
            "wrong": int(wrong_N[i]),
        }
        for i in order
    ]


def _frames(
    mistakes: Sequence[Mapping[str, Any]], facts: RunFacts, dataset_path: Path | None
) -> dict[str, images.Picture]:
    """Frames of the clips by name; any run of a cross-validation knows where all are."""
    if dataset_path is not None and not dataset_path.exists():
        raise VdError(
            f"--dataset-path {dataset_path} does not exist; name where the data set is."
        )
    root = dataset_path or facts.config.data.dataset_path
    videos = {video.name: video for video in videos_of(facts.folder, root)}
    names = [mistake["name"] for mistake in mistakes]  # one may have been renamed since
    chosen = [videos[name] for name in names if name in videos]
    return images.frame_strips(chosen, facts.config.decode)


def render(package: str, template: str, values: Mapping[str, Any]) -> str:
    """A template of `package` filled in, a whole page; names from files are escaped."""
    packages = dict.fromkeys([package, "vd.report"])
    missing = jinja2.ChainableUndefined
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in packages]),
        autoescape=True,
        undefined=missing,
        finalize=lambda x: DASH if x is None or isinstance(x, missing) else x,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "decimal": _decimal,
        "yes_no": lambda value: {True: "YES", False: "no"}.get(value, DASH),
    }
    page = environment.get_template(template).render(values)
    # names that are not UTF-8 stay readable
    return page.encode("utf-8", "backslashreplace").decode()


def _percent(value: Any) -> str:
    """A share, or an interval [low, high] of shares, in percent."""
    if isinstance(value, list):
        return f"{100 * value[0]:z.1f} to {100 * value[1]:z.1f} %"
    return f"{100 * value:z.1f} %" if isinstance(value, int | float) else DASH


def _decimal(value: Any, digits: int = 3) -> str:
    """A number, or an interval [low, high], with so many decimals."""
    if isinstance(value, list):
        return f"{value[0]:z.{digits}f} to {value[1]:z.{digits}f}"
    return f"{value:z.{digits}f}" if isinstance(value, int | float) else DASH
