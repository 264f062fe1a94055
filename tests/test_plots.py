"""Pictures say what the arrays do: their points and texts, by hand."""

import numpy as np
import pytest

from vd import plots


def test_a_reliability_diagram_shows_the_share_that_is_violent():
    """Of the clips at 0.5 half are violent, in any order; of those at 0.9 all are."""
    labels, p = np.array([1, 1, 0, 0, 1, 1]), np.array([0.5] * 4 + [0.9] * 2)
    points = plots.reliability(labels, p).axes[0].lines[1]
    assert points.get_xdata().tolist() == pytest.approx([0.5, 0.9])
    assert points.get_ydata().tolist() == [0.5, 1.0]


@pytest.mark.parametrize("label", [0, 1])
def test_an_absent_class_has_no_shares(label):
    figure = plots.confusion(np.full(4, label), np.full(4, True), "")
    texts = [text.get_text() for text in figure.axes[0].texts]
    absent = slice(2, 4) if label == 0 else slice(0, 2)
    assert texts[absent] == ["0\n–", "0\n–"]
    assert "4\n100 %" in texts
    plots.reliability(np.full(4, label), np.full(4, 0.9))
    figure = plots.roc({"run": (np.full(4, label), np.full(4, 0.9))})
    assert "run: one class only" in [t.get_text() for t in figure.legends[0].texts]


@pytest.mark.parametrize(
    ("seconds", "ticks", "unit"),
    [
        (14.0, ["0", "2", "4", "6", "8", "10", "12", "14"], "seconds"),
        (130.0, ["0", "15", "30", "45", "1:00", "1:15"], "minutes:seconds"),
        (1.75, ["0", "0.25", "0.5", "0.75", "1"], "seconds"),
        (7000.0, ["0", "15:00", "30:00", "45:00", "1:00:00"], "hours:minutes:seconds"),
    ],
)
def test_the_ticks_of_a_timeline_are_round_times(seconds, ticks, unit):
    seconds_W = np.linspace(0, seconds, 50)
    axis = plots.timeline(seconds_W, np.full(50, 0.5), 0.5, 0.3).axes[0]
    texts = [text.get_text() for text in axis.get_xticklabels()]
    texts = [text for text in texts if text]
    assert texts[: len(ticks)] == ticks
    assert axis.get_xlabel() == unit
