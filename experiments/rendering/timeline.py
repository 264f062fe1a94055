"""A picture of the probability of violence over a video."""

from collections.abc import Sequence
from pathlib import Path

import vd
from vd import plots


def draw_timeline(
    run_dir: Path,
    video: Path,
    picture: Path,
    violent_spans: Sequence[tuple[float, float]],
) -> None:
    """Draw what a run predicts over a video that decodes, beside the violent spans."""
    predictor = vd.load(run_dir)
    (prediction,) = predictor.predict([video])
    rules = predictor.plan.rules
    events = [(event.start, event.end or event.start) for event in prediction.events]
    figure = plots.timeline(
        prediction.timeline.seconds_W,
        prediction.timeline.probability_W,
        rules.threshold,
        rules.end_threshold,
        events,
        truth=violent_spans,
    )
    plots.save(figure, picture)
