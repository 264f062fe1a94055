"""The table and the picture of the study `front.py`, from its lines alone."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from front_points import DEFAULT, POINTS, PROBE, Point
from front_speed import STAGES
from heads_lines import Results
from heads_table import inner_lines, outers, scored, scores, spread
from jaxtyping import Float
from matplotlib.figure import Figure

from vd.metrics.binary import shown
from vd.plots import BLUE, GREY, ORANGE

_HEAD = """\
| point | images of a clip | ROC AUC | accuracy | AUC less the probe's | parts above it |{}
|---|---|---|---|---|---|{}"""
_SPEED_HEAD = " videos/s | both can reach | share of it |"

Floats = Float[np.ndarray, " N"]


class Rates(NamedTuple):
    """Videos a second at a point."""

    extraction: float
    bound: float  # what decoding and the network can reach on the same cores


def read_rates(lines: Path, dataset: str) -> dict[str, Rates]:
    """Medians of the last `--speed` by the point's name; empty where there was none."""
    every = [json.loads(text) for text in lines.read_text().splitlines()]
    timed = [line for line in every if line["dataset"] == dataset and "seconds" in line]
    if not timed:
        return {}
    rates = {}
    for name, stages in timed[-1]["seconds"].items():
        whole, decoding, network = (median(stages[stage]) for stage in STAGES)
        clips = timed[-1]["timed_clips"]
        rates[name] = Rates(clips / whole, clips / (decoding + network))
    return rates


class Measured(NamedTuple):
    """A point with its figures."""

    point: Point
    images: float  # of a clip, through the network
    parts: Float[
        np.ndarray, "O 3"
    ]  # AUC, log loss, accuracy of each outer training part
    rates: Rates | None

    @property
    def auc(self) -> float:
        """Mean over the outer training parts."""
        return float(self.parts[:, 0].mean())


def rows(results: Results, rates: dict[str, Rates]) -> Iterator[Measured]:
    """The points whose inner folds are all there."""
    for point in POINTS:
        every = [
            inner_lines(results, point.name, outer, 0) for outer in outers(results)
        ]
        parts = [lines for lines in every if lines is not None]
        if len(parts) == len(every):
            figures = np.array([scores(scored(results, lines)) for lines in parts])
            images = parts[0][0]["images"]
            timed = point._replace(change=True).name
            yield Measured(point, images, figures, rates.get(timed))


def table_of(points: Sequence[Measured]) -> str:
    """A line a point: mean ± deviation over outer training parts, and videos/s if timed."""
    timed = all(row.rates for row in points)
    written = [_HEAD.format(*(_SPEED_HEAD, "---|" * 3) if timed else ("", ""))]
    probe = next(row for row in points if row.point == PROBE)
    for row in points:
        gain_O = row.parts[:, 0] - probe.parts[:, 0]
        name = row.point.name
        name += f" (`{row.point.preset}`)" if row.point.preset else ""
        cells = [
            name, f"{row.images:.0f}", spread(row.parts[:, 0]),
            shown("accuracy", float(row.parts[:, 2].mean())), spread(gain_O, "+"),
            f"{np.sum(gain_O > 0)} of {len(gain_O)}",
        ]  # fmt: skip
        if timed and row.rates:
            whole, bound = row.rates
            cells += [f"{whole:.2f}", f"{bound:.2f}", f"{whole / bound:.2f}"]
        written.append(f"| {' | '.join(cells)} |")
    return "\n".join(written)


def front(speed_N: Floats, auc_N: Floats) -> list[int]:
    """The points that no other surpasses in both, the fastest first."""
    chosen: list[int] = []
    for n in sorted(range(len(auc_N)), key=lambda n: (-speed_N[n], -auc_N[n])):
        if not chosen or auc_N[n] > auc_N[chosen[-1]]:
            chosen.append(n)
    return chosen


def front_figure(points: Sequence[Point], speed_N: Floats, auc_N: Floats) -> Figure:
    """ROC AUC against videos/s, with each point's streams and a line through the front."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axis = figure.subplots()
    best = front(speed_N, auc_N)
    axis.plot(speed_N[best], auc_N[best], "-", color=GREY, zorder=1)
    kinds = np.array([point.images for point in points])
    for kind in dict.fromkeys(kinds):
        colour = BLUE if kind.startswith(f"{DEFAULT.size}") else ORANGE
        marker = "^" if "8 bits" in kind else "o"
        of_kind = speed_N[kinds == kind], auc_N[kinds == kind]
        axis.scatter(*of_kind, color=colour, marker=marker, label=kind, zorder=2)
    for point, place in zip(points, zip(speed_N, auc_N, strict=True), strict=True):
        # initials, for whole names cover each other
        name = "".join(stream[0].upper() for stream in point.streams)
        name += ", two views" if point.views > 1 else ""
        name += f"\n({point.preset})" if point.preset else ""
        name += "\n(mean, deviation)" if not point.change else ""
        above = point.size == DEFAULT.size
        axis.annotate(
            name, place, (0, 5 if above else -5), textcoords="offset points",
            fontsize=7, ha="center", va="bottom" if above else "top",
        )  # fmt: skip
    axis.margins(x=0.1, y=0.1)
    axis.set_xlabel("videos/s, from files to stored features")
    axis.set_ylabel("ROC AUC of a linear map, inner folds")
    initials = "R: rgb, M: motion, S: square"
    axis.legend(loc="lower left", fontsize=8, title=initials, title_fontsize=8)
    axis.grid(alpha=0.3)
    return figure
