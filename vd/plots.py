"""Pictures: arrays in, a matplotlib Figure out."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, roc_curve

from vd.files import write_bytes

Labels = Int[np.ndarray, " N"]
Probabilities = Float[np.ndarray, " N"]
Predicted = Bool[np.ndarray, " N"]
Spans = Sequence[tuple[float, float]]
Rows = Sequence[Mapping[str, Any]]  # an epoch each

# Colours that colour-blind readers distinguish (Okabe and Ito 2008).
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"
_RUNS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY)
_STYLES = ("-", "--", "-.")  # for print without colour
_MARKED = 200  # windows; more are a line without points
_TIME_STEPS = 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200
_LONGEST_NAME = 28  # of which two stand side by side
_PANELS = {  # of the learning curves: metrics by what the legend calls them
    "Loss": {"validation": "val_loss", "train": "train_loss"},
    "Accuracy at 0.5": {"validation": "val_accuracy", "train": "train_accuracy"},
    "Validation recall at 0.5": {
        "violent": "val_recall_violent",
        "non-violent": "val_recall_nonviolent",
    },
    "Learning rate": {"": "learning_rate"},
}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_bytes(path, png(figure))


def png(figure: Figure) -> bytes:
    """A figure as PNG, without version and date: same figure, same bytes."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=150, metadata={"Software": None})
    return target.getvalue()


def learning_curves(runs: Mapping[str, Rows]) -> Figure:
    """Loss, accuracy, recalls and learning rate over epochs; `runs` are metrics.jsonl rows."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    for axis, (title, metrics) in zip(axes, _PANELS.items(), strict=True):
        for rows, colour in zip(runs.values(), cycle(_RUNS), strict=False):
            epochs = [row["epoch"] for row in rows]
            for key, style in zip(metrics.values(), _STYLES, strict=False):
                # a metric that is missing or undefined is a gap
                values = np.array([row.get(key) for row in rows], float)
                axis.plot(epochs, values, f".{style}", ms=3, color=colour)
        _over_epochs(axis)
        if len(metrics) > 1:
            axis.legend(list(metrics), fontsize=8)  # in the colour of the first run
        axis.set_title(title, loc="left", fontsize=10)
        if "at 0.5" in title:
            axis.set_ylim(-0.02, 1.02)
        else:
            axis.set_ylim(bottom=0)
    if len(runs) > 1:
        firsts = axes[0].lines[:: len(_PANELS["Loss"])]
        names = [_short(name) for name in runs]
        figure.legend(firsts, names, loc="outside lower center", ncols=2)
    return figure


def bands(curves: Mapping[str, Rows], panels: Mapping[str, str]) -> Figure:
    """Mean and ± one standard deviation over members, an epoch a row, for each curve.

    `panels` are titles by metric; rows hold `epoch`, `members`, `<metric>_mean` and
    `<metric>_sd`, which is None, and drawn as nothing, where one member is left.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (metric, title) in zip(axes, panels.items(), strict=True):
        for (name, rows), colour, style in zip(
            curves.items(), cycle(_RUNS), cycle(_STYLES), strict=False
        ):
            epochs, members, mean, spread = (
                np.array([row[key] for row in rows], float)
                for key in ("epoch", "members", f"{metric}_mean", f"{metric}_sd")
            )
            label = f"{_short(name)}, runs: {members.max(initial=0):.0f}"
            axis.plot(epochs, mean, f".{style}", ms=3, color=colour, label=label)
            axis.fill_between(
                epochs, mean - spread, mean + spread, color=colour, alpha=0.18, lw=0
            )
        axis.set_title(title)
        _over_epochs(axis)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
        title="mean and standard deviation over the runs that reached an epoch",
    )  # fmt: skip
    return figure


def _over_epochs(axis: Axes) -> None:
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.grid(alpha=0.3)


def _legend_below(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _short(name: str) -> str:
    """A name for a legend, without formulas between dollars and broken characters.

    A long one loses its middle: names of folders differ at their ends.
    """
    if len(name) > _LONGEST_NAME:
        name = f"{name[:9]}…{name[-18:]}"
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def timeline(
    seconds_W: Float[np.ndarray, " W"],
    probability_W: Probabilities,
    threshold: float,
    end_threshold: float,
    events: Spans = (),
    gaps: Spans = (),
    truth: Spans = (),
) -> Figure:
    """Probability of violence over a video; spans are (start, end) in seconds.

    `truth` are the spans that are violent, where that is known.
    """
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axis = figure.subplots()
    for spans, label, colour, height, alpha in (
        (gaps, "nothing to see", GREY, 1.0, 0.3),
        (events, "events", BLUE, 1.0, 0.2),
        (truth, "violent in truth", ORANGE, 0.05, 1.0),  # a bar at the foot
    ):
        for number, (start, end) in enumerate(spans):
            named = None if number else label
            axis.axvspan(
                start, end, 0, height, label=named, lw=0, color=colour, alpha=alpha
            )
    # not drawn across a gap
    places = np.searchsorted(seconds_W, [start for start, _ in gaps])
    middles = [(start + end) / 2 for start, end in gaps]
    x, y = np.insert(seconds_W, places, middles), np.insert(probability_W, places, nan)
    label = "probability of violence"
    axis.plot(x, y, "-" if len(x) > _MARKED else ".-", color=BLUE, label=label)
    label = f"opens at {threshold:.2f}, closes under {end_threshold:.2f}"
    axis.axhline(threshold, ls="--", color=GREY, label=label)
    axis.axhline(end_threshold, ls=":", color=GREY)
    axis.set(ylabel="probability", ylim=(-0.02, 1.02))
    first, last = axis.get_xlim()
    units = "seconds", "minutes:seconds", "hours:minutes:seconds"
    axis.set_xlabel(units[int(last >= 60) + int(last >= 3600)])
    axis.xaxis.set_major_formatter(lambda seconds, _: _time(seconds))
    steps = (step for step in _TIME_STEPS if last - first <= 10 * step)
    axis.xaxis.set_major_locator(MultipleLocator(next(steps, _TIME_STEPS[-1])))
    figure.legend(loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    axis.grid(alpha=0.3)
    return figure


def _time(seconds: float) -> str:
    """A tick of a time axis: 7.5, 1:05 or 1:02:03."""
    if seconds < 0:
        return ""
    if seconds % 1:
        return f"{seconds:.2f}".rstrip("0")
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{rest}"


def confusion(labels_N: Labels, predicted_N: Predicted, title: str) -> Figure:
    """Confusion matrix: counts, and shares of each true class."""
    counts = confusion_matrix(labels_N, predicted_N, labels=[0, 1])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(4.8, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        of_class = f"{100 * share:.0f} %" if counts[row].any() else "–"
        text = f"{counts[row, column]}\n{of_class}"
        colour = "white" if share > 0.5 else "black"
        axis.text(column, row, text, ha="center", va="center", color=colour, size=14)
    names = ["non-violent", "violent"]
    axis.set(
        xticks=[0, 1], yticks=[0, 1], xticklabels=names, yticklabels=names,
        xlabel="predicted", ylabel="true", title=title,
    )  # fmt: skip
    return figure


def roc(runs: Mapping[str, tuple[Labels, Probabilities]]) -> Figure:
    """ROC curves of several runs: labels and probabilities of each."""
    figure, axis = _unit_square()
    for (name, (labels_N, p_N)), colour, style in zip(
        runs.items(), cycle(_RUNS), cycle(_STYLES), strict=False
    ):
        if len(np.unique(labels_N)) < 2:
            axis.plot([], [], label=f"{_short(name)}: one class only")
        else:
            x, y, _ = roc_curve(labels_N, p_N)
            axis.plot(x, y, style, color=colour, label=_short(name))
    axis.plot([0, 1], [0, 1], ":", color=GREY, label="chance")
    axis.set(xlabel="false alarms (share of non-violent)", title="ROC")
    axis.set_ylabel("recall of violent")
    _legend_below(figure)
    return figure


def reliability(labels_N: Labels, probability_N: Probabilities) -> Figure:
    """Observed frequency against predicted probability, in bins of equally many clips."""
    figure, axis = _unit_square()
    axis.plot([0, 1], [0, 1], ":", color=GREY, label="perfect")
    observed, predicted = calibration_curve(
        labels_N, probability_N, n_bins=10, strategy="quantile"
    )
    label = f"{len(labels_N)} predictions, equally many a point"
    axis.plot(predicted, observed, "o", color=BLUE, label=label)
    axis.set(xlabel="predicted probability of violence", title="Reliability")
    axis.set_ylabel("share that is violent")
    _legend_below(figure)
    return figure


def _unit_square() -> tuple[Figure, Axes]:
    """A figure, and its axes from 0 to 1 with a grid."""
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.grid(alpha=0.3)
    return figure, axis
