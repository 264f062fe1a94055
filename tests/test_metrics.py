"""Metrics and calibration against cases worked out by hand."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from tests.fabricated import made_up_predictions
from vd.evaluation.crossval import summarise
from vd.evaluation.predictions import Member
from vd.metrics import binary as metrics
from vd.metrics.calibration import Calibration, fit

LABELS = np.array([0, 0, 0, 1, 1])
PROBABILITY = np.array([0.1, 0.4, 0.8, 0.6, 0.9])


def evaluate(threshold=0.5):
    return metrics.evaluation_metrics(LABELS, PROBABILITY, np.arange(5), threshold)


def test_hand_computed_case():
    result = evaluate()
    assert result["n"] == 5
    assert result["accuracy"] == pytest.approx(4 / 5)
    assert result["recall_violent"] == 1.0
    assert result["recall_nonviolent"] == pytest.approx(2 / 3)
    assert result["f1_violent"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert result["roc_auc"] == pytest.approx(5 / 6)  # one of six pairs is wrong
    # precision at each violent clip, best first: 1/1 and 2/3
    assert result["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["brier"] == pytest.approx((0.01 + 0.16 + 0.64 + 0.16 + 0.01) / 5)
    assert result["collapsed"] is False
    higher = evaluate(threshold=0.85)
    assert (higher["accuracy"], higher["recall_violent"]) == (0.8, 0.5)
    assert higher["accuracy_at_0.5"] == 0.8


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [([0] * 10, True), ([1] * 10, True), ([0, 1] * 5, False), ([0] * 9 + [1], False)],
)
def test_collapse(predicted, expected):
    labels = np.array([0] * 9 + [1]) if sum(predicted) == 1 else np.array([0, 1] * 5)
    assert metrics.collapsed(labels, np.array(predicted, bool)) is expected


def test_a_metric_is_added_in_one_place():
    """As docs/extending.md adds it, word for word; without an interval."""
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    code = page.partition("## A metric")[2].split("```")[1].removeprefix("python")
    with patch.dict(metrics.METRICS):
        exec(code, {"METRICS": metrics.METRICS, "Metric": metrics.Metric})  # noqa: S102
        result = evaluate()
        predictions = made_up_predictions("abcde", LABELS, PROBABILITY)
        crossed = summarise([Member(Path("run"), 0, 0, 0.5, 8, predictions)])
    assert result["matthews"] == pytest.approx(2 / 3)  # (2·2 − 0·1) / √(2·3·3·2)
    assert "matthews_ci95" not in result
    assert crossed["over_seeds"]["matthews"] == {
        "mean": result["matthews"], "ci95": None, "sd": None,
    }  # fmt: skip


def test_temperature_undoes_a_known_scaling():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=5000) * 2
    labels = (rng.uniform(size=5000) < 1 / (1 + np.exp(-logits))).astype(int)
    assert fit(3 * logits, labels).temperature == pytest.approx(3, rel=0.05)


def test_a_part_without_a_mistake_gives_no_certainty():
    logits, labels = np.array([-4.0] * 8 + [4.0] * 8), np.array([0] * 8 + [1] * 8)
    highest = fit(logits, labels).probability(np.array([4.0]))[0]
    assert highest == pytest.approx(9 / 10, abs=1e-3)  # Platt's target for 8 clips


def test_threshold_lies_between_the_classes():
    labels = np.repeat([0, 1], 4)
    apart = np.array([-5.0, -4.9, -5.1, -5.0, 5.0, 5.1, 4.9, 5.0])
    assert fit(apart, labels).threshold == 0.5  # of many as good the nearest to it
    for shift in (-30, 7):
        fitted = fit(apart + shift, labels)
        low, high = fitted.probability(np.array([-4.9, 4.9]) + shift)
        assert low < fitted.threshold <= high
    one = fit(np.array([1.0, 1.0, 1.0]), np.array([1, 1, 1]))
    assert one.threshold <= one.probability(np.array([1.0]))[0]


def cut(logits, labels, even):
    fitted = fit(logits, labels, even)
    return fitted.temperature * np.log(fitted.threshold / (1 - fitted.threshold))


def test_a_threshold_of_few_clips_errs_less_than_the_best_of_those_clips():
    """Classes at -1 ± 2 and 2 ± 2 are best cut at 0.5."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 15)
    ours, plain = [], []
    for _ in range(100):
        logits = rng.normal(size=30) * 2 + np.where(labels, 2, -1)
        ours.append(abs(cut(logits, labels, 0.0) - 0.5))
        cuts = np.sort(logits)
        cuts = (cuts[1:] + cuts[:-1]) / 2
        right = [np.mean((logits >= cut) == labels) for cut in cuts]
        plain.append(abs(cuts[np.argmax(right)] - 0.5))
    assert np.mean(ours) < 0.85 * np.mean(plain)


def test_few_clips_leave_the_loss_its_threshold_and_many_do_not():
    """Classes at -1 ± 1 and 1 ± 1 are best cut at 0; the loss says 1."""
    rng = np.random.default_rng(0)
    far = []
    for count, repeats in ((15, 20), (150, 10), (2000, 5)):
        labels = np.repeat([0, 1], count)
        made = [rng.normal(size=2 * count) + 2 * labels - 1 for _ in range(repeats)]
        far.append(np.mean([abs(cut(logits, labels, 1.0)) for logits in made]))
    assert far[0] > 0.6
    assert 0.1 < far[1] < 0.4
    assert far[2] < 0.1


def test_a_network_that_is_off_by_far_is_followed():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 6)
    logits = rng.normal(size=12) + 8 * labels - 4
    assert logits[:6].max() + 9 < cut(logits + 9, labels, 0.0) < logits[6:].min() + 9


@pytest.mark.parametrize("wild", [3.0, 100.0, 1e6])
def test_one_wild_logit_moves_no_threshold(wild):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    logits = rng.normal(size=60) + np.where(labels, 2, -1)
    logits[-1] = wild
    fitted = fit(logits, labels)
    low, high = fitted.probability(np.array([-0.5, 1.5]))
    assert low < fitted.threshold < high


def test_probability_is_the_sigmoid_of_the_scaled_logit():
    fitted = Calibration(2.0, 0.5, "")
    np.testing.assert_allclose(
        fitted.probability(np.array([0, 2 * np.log(3)])), [0.5, 0.75]
    )
