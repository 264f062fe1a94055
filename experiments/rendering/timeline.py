"""A picture of the probability of violence over a video."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

import vd
from vd import plots


def draw_timeline(
    run_dir: Path,
    video: Path,
    picture: Path,
    violent_spans: Sequence[tuple[float, float]],
) -> None:
    """Draw what a run predicts over a video that decodes; violent spans are shaded."""
    seconds_W, probability_W, threshold = vd.load(run_dir).timeline(video)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axis = figure.subplots()
    for number, (start, end) in enumerate(violent_spans):
        label = None if number else "violent in truth"
        axis.axvspan(start, end, color=plots.ORANGE, alpha=0.18, label=label)
    label = "probability of violence"
    axis.plot(seconds_W, probability_W, ".-", color=plots.BLUE, label=label)
    label = f"threshold {threshold:.2f}"
    axis.axhline(threshold, ls="--", color=plots.GREY, label=label)
    axis.set(xlabel="seconds", ylabel="probability", ylim=(-0.02, 1.02))
    axis.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.18), frameon=False)
    axis.grid(alpha=0.3)
    plots.save(figure, picture)
