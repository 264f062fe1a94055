"""Pictures: arrays in, a matplotlib Figure out; a file's suffix decides its format."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from vd.errors import VdError
from vd.files import writing

# Colours that the colour-blind tell apart (Okabe and Ito 2008).
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#777777"
_RUNS = (_BLUE, _ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", _GREY)
_STYLES = ("-", "--", "-.")  # told apart without colour, too
_LONGEST_NAME = 28  # of which two stand side by side
_FORMATS = (".png", ".pdf", ".svg")
# Panels of the learning curves: metric, what the legend calls it, style of its line.
_PANELS = {
    "Loss": (("train_loss", "train", "--"), ("val_loss", "validation", "-")),
    "Accuracy at 0.5": (
        ("train_accuracy", "train", "--"), ("val_accuracy", "validation", "-"),
    ),
    "Validation recall at 0.5": (
        ("val_recall_violent", "violent", "-"), ("val_recall_nonviolent", "non-violent", ":"),
    ),
    "Learning rate": (("learning_rate", "", "-"),),
}  # fmt: skip
CURVES = tuple(_PANELS)


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all, without a date in it: same figure, same bytes."""
    if path.suffix not in _FORMATS:
        raise VdError(f"{path} must end in one of {', '.join(_FORMATS)}.")
    kind = path.suffix[1:]
    metadata = {
        "png": {"Software": None},
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
    }
    with writing(path) as temporary_path:
        figure.savefig(temporary_path, format=kind, dpi=150, metadata=metadata[kind])


def png(figure: Figure) -> bytes:
    """A figure as PNG, for a page that holds its pictures: same figure, same bytes."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=130, metadata={"Software": None})
    return target.getvalue()


def learning_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], titles: Sequence[str] = CURVES
) -> Figure:
    """Loss, accuracy, recalls and learning rate over epochs; `runs` are metrics.jsonl rows.

    A run has a colour, which is named when there are several. `titles` choose the panels.
    """
    columns = min(2, len(titles))
    lines_of_panels = -(-len(titles) // columns)
    size = (10, 3.2 * lines_of_panels) if columns > 1 else (4.8, 3.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines_of_panels, columns, squeeze=False).ravel()
    names: dict[str, Line2D] = {}
    for axis, title in zip(axes, titles, strict=False):
        lines = _PANELS[title]
        for (name, rows), colour in zip(runs.items(), cycle(_RUNS), strict=False):
            epochs = [row["epoch"] for row in rows]
            dot = "." if len(rows) == 1 else ""  # one point makes no line
            for key, _, style in lines:
                values = [np.nan if row[key] is None else row[key] for row in rows]
                (names[name],) = axis.plot(
                    epochs, values, style, marker=dot, color=colour
                )
        axis.set(xlabel="epoch")
        axis.set_title(title, loc="left", fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            styles = [
                Line2D([], [], color="black", ls=style, label=label)
                for _, label, style in lines
            ]
            axis.legend(  # beside the title, where it hides no curve
                handles=styles, fontsize=8, ncols=2, frameon=False, loc="lower right",
                bbox_to_anchor=(1.0, 0.98), borderaxespad=0.0,
            )  # fmt: skip
        if "at 0.5" in title:
            axis.set_ylim(-0.02, 1.02)
        else:
            axis.set_ylim(bottom=0)
    if len(runs) > 1:
        short = [abbreviated(name) for name in names]
        figure.legend(list(names.values()), short, loc="outside lower center", ncols=2)
    return figure


def bands(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], panels: Mapping[str, str]
) -> Figure:
    """Mean and ± one standard deviation over members, an epoch a row, for each curve.

    `panels` are titles by metric; rows hold `epoch`, `members`, `<metric>_mean` and
    `<metric>_sd`. Where some members have stopped the line is dotted.
    """
    alone = len(panels) == 1
    size = (4.8, 4.2) if alone else (10, 4.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    lines: dict[str, Line2D] = {}
    for axis, (metric, title) in zip(axes, panels.items(), strict=True):
        for (name, rows), colour, style in zip(
            curves.items(), cycle(_RUNS), cycle(_STYLES), strict=False
        ):
            most = max((row["members"] for row in rows), default=0)
            epochs = np.array([row["epoch"] for row in rows])
            mean, spread = (
                np.array([row[f"{metric}_{of}"] for row in rows], float)
                for of in ("mean", "sd")
            )
            whole = np.array([row["members"] == most for row in rows], bool)
            dot = "." if whole.sum() == 1 else ""
            label = f"{abbreviated(name)} ({most} run{'s' if most != 1 else ''})"
            (lines[label],) = axis.plot(
                epochs[whole], mean[whole], style, marker=dot, color=colour
            )
            rest = slice(max(int(whole.sum()) - 1, 0), None)  # from the last whole one
            axis.plot(epochs[rest], mean[rest], ":", color=colour, alpha=0.7)
            axis.fill_between(
                epochs[whole], (mean - spread)[whole], (mean + spread)[whole],
                color=colour, alpha=0.18, linewidth=0,
            )  # fmt: skip
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
    title = "mean and standard deviation over runs; dotted where some have stopped"
    figure.legend(
        list(lines.values()), list(lines), loc="outside lower center",
        ncols=1 if alone else 3, title=title.replace("; ", ";\n") if alone else title,
        fontsize=8 if alone else None, title_fontsize=8 if alone else None,
    )  # fmt: skip
    return figure


def phases(
    rows: Sequence[Mapping[str, Any]], spans: Mapping[str, tuple[int, int]]
) -> Figure:
    """Losses over epochs, with named spans (first and last epoch) marked; `rows` as above."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axis = figure.subplots()
    epochs = [row["epoch"] for row in rows]
    for key, label, style in _PANELS["Loss"]:
        axis.plot(epochs, [row[key] for row in rows], style, color=_BLUE, label=label)
    for number, (name, (first, last)) in enumerate(spans.items()):
        axis.axvspan(
            first - 0.5, last + 0.5, color=_GREY, alpha=0.06 + 0.1 * (number % 2)
        )
        axis.axvline(last + 0.5, color=_GREY, ls=":", lw=1)
        axis.annotate(
            name, ((first + last) / 2, 0.98), xycoords=("data", "axes fraction"),
            ha="center", va="top", fontsize=9, rotation=0 if last - first > 1 else 90,
        )  # fmt: skip
    axis.set(xlabel="epoch", ylabel="loss", xlim=(0.5, len(rows) + 0.5))
    axis.set_ylim(0, 1.4 * axis.get_ylim()[1])  # room for the names
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def abbreviated(name: str, most: int = _LONGEST_NAME) -> str:
    """A name for a legend or a title, as it is: no formula in dollars, no half characters.

    A long one loses its middle, for names of folders differ at their ends.
    """
    if len(name) > most:
        name = f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def confusion(
    labels_N: Int[np.ndarray, " N"],
    probability_N: Float[np.ndarray, " N"],
    threshold: float,
    title: str = "",
) -> Figure:
    """Confusion matrix at the threshold: counts, and shares of each true class."""
    counts = confusion_matrix(labels_N, probability_N >= threshold, labels=[0, 1])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(4.8, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        of_class = f"{100 * share:.0f} %" if counts[row].any() else "–"
        text = f"{counts[row, column]}\n{of_class}"
        colour = "white" if share > 0.5 else "black"
        axis.text(
            column, row, text, ha="center", va="center", color=colour, fontsize=14
        )
    names = ["non-violent", "violent"]
    axis.set(
        xticks=[0, 1], yticks=[0, 1], xticklabels=names, yticklabels=names,
        xlabel="predicted", ylabel="true", title=title or f"Confusion at threshold {threshold:.3f}",
    )  # fmt: skip
    return figure


def rates(
    runs: Mapping[str, tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]],
    kind: Literal["roc", "precision-recall"],
) -> Figure:
    """ROC or precision–recall curves of several runs: labels and probabilities of each.

    A run with one class only has no curve, which the legend says.
    """
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axis = figure.subplots()
    for (name, (labels_N, p_N)), colour, style in zip(
        runs.items(), cycle(_RUNS), cycle(_STYLES), strict=False
    ):
        if len(np.unique(labels_N)) < 2:
            axis.plot([], [], label=f"{abbreviated(name)}: one class only")
        elif kind == "roc":
            false_alarms, hits, _ = roc_curve(labels_N, p_N)
            axis.plot(false_alarms, hits, style, color=colour, label=abbreviated(name))
        else:
            precision, recall, _ = precision_recall_curve(labels_N, p_N)
            axis.step(
                recall, precision, style, where="post", color=colour,
                label=abbreviated(name),
            )  # fmt: skip
    if kind == "roc":
        axis.plot([0, 1], [0, 1], ":", color=_GREY, label="chance")
        axis.set(xlabel="false alarms (share of non-violent)", title="ROC")
        axis.set_ylabel("recall of violent")
    else:
        labels = [labels_N for labels_N, _ in runs.values() if len(labels_N)]
        if labels:
            chance = float(np.mean(labels[0]))
            axis.axhline(chance, ls=":", color=_GREY, label="share of violent clips")
        axis.set(xlabel="recall of violent", title="Precision–recall")
        axis.set_ylabel("precision of violent")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    axis.grid(alpha=0.3)
    return figure


def reliability(
    labels_N: Int[np.ndarray, " N"],
    probability_N: Float[np.ndarray, " N"],
    bins: int = 10,
    times: int = 1,
) -> Figure:
    """Observed frequency, with its interval, against predicted probability.

    The bins hold equally many clips, as in the expected calibration error; clips of equal
    probability count as their mean. With each clip `times` times in the arrays, once a
    seed, intervals are as wide as for once.
    """
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], ":", color=_GREY, label="perfect")
    order = np.argsort(probability_N, kind="stable")
    _, same_N, counts = np.unique(
        probability_N, return_inverse=True, return_counts=True
    )
    mean_N = (np.bincount(same_N, labels_N) / counts)[same_N]
    parts = np.array_split(order, min(bins, len(order)))
    clips = f"{len(order) // times} clips" + (f" × {times} seeds" if times > 1 else "")
    label = (
        f"{clips} in {len(parts)} bins; 95 % intervals\nas if clips were independent"
    )
    for part in parts:
        predicted, observed = np.mean(probability_N[part]), np.mean(mean_N[part])
        low, high = _wilson(float(observed), len(part) / times)
        axis.vlines(predicted, low, high, color=_BLUE, alpha=0.4)
        axis.plot(predicted, observed, "o", color=_BLUE, label=label)
        label = "_"  # one entry in the legend
    axis.set(
        xlabel="predicted probability of violence", ylabel="share that is violent",
        title="Reliability", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
    )  # fmt: skip
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    axis.grid(alpha=0.3)
    return figure


def _wilson(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a share of `count` (Wilson 1927)."""
    middle = count * share + 1.96**2 / 2
    half = 1.96 * np.sqrt(count * share * (1 - share) + 1.96**2 / 4)
    return (middle - half) / (count + 1.96**2), (middle + half) / (count + 1.96**2)


def timeline(
    seconds_W: Float[np.ndarray, " W"],
    probability_W: Float[np.ndarray, " W"],
    threshold: float,
    violent_spans: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Probability of violence over a video; known violent spans, if any, are shaded."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axis = figure.subplots()
    for number, (start, end) in enumerate(violent_spans):
        label = None if number else "violent in truth"
        axis.axvspan(start, end, color=_ORANGE, alpha=0.18, label=label)
    axis.plot(
        seconds_W, probability_W, ".-", color=_BLUE, label="probability of violence"
    )
    axis.axhline(threshold, ls="--", color=_GREY, label=f"threshold {threshold:.2f}")
    axis.set(xlabel="seconds", ylabel="probability", ylim=(-0.02, 1.02))
    axis.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.18), frameon=False)
    axis.grid(alpha=0.3)
    return figure
