"""Pictures say what the arrays do: their points and texts, by hand."""

import numpy as np
import pytest

from vd import plots


def dots(figure):
    """The observed shares, and the intervals, of a reliability diagram."""
    axis = figure.axes[0]
    shares = [line.get_ydata()[0] for line in axis.lines if line.get_marker() == "o"]
    ends = [segments.get_segments()[0][:, 1] for segments in axis.collections]
    return shares, ends


def test_clips_that_tie_are_calibrated_in_any_order():
    """Forty clips at a half, half of them violent: the calibration error is 0, too."""
    shares, _ = dots(plots.reliability(np.repeat([1, 0], 20), np.full(40, 0.5)))
    assert shares == [0.5] * 10


def test_a_clip_tested_twice_is_no_further_evidence():
    labels, p = np.array([0, 1] * 10), np.linspace(0.05, 0.95, 20)
    shares, once = dots(plots.reliability(labels, p, bins=2))
    again, twice = dots(
        plots.reliability(np.repeat(labels, 2), np.repeat(p, 2), bins=2, times=2)
    )
    assert again == shares == [0.5, 0.5]
    np.testing.assert_allclose(twice, once)


@pytest.mark.parametrize("label", [0, 1])
def test_an_absent_class_has_no_shares(label):
    figure = plots.confusion(np.full(4, label), np.full(4, True), "")
    texts = [text.get_text() for text in figure.axes[0].texts]
    absent = slice(2, 4) if label == 0 else slice(0, 2)
    assert texts[absent] == ["0\n–", "0\n–"]
    assert "4\n100 %" in texts
    figure = plots.roc({"run": (np.full(4, label), np.full(4, 0.9))})
    assert "run: one class only" in [t.get_text() for t in figure.legends[0].texts]
