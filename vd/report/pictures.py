"""Pictures of a report: from the files' arrays through `vd.plots`, inline in the page."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from vd import plots
from vd.evaluation.curves import PANELS
from vd.evaluation.results import Pooled
from vd.report.words import decimal


class Picture(NamedTuple):
    """A picture in the page, and what it shows, for whoever does not see it."""

    source: str  # a data URI
    alt: str


def picture(figure: Figure, alt: str) -> Picture:
    """A figure as a picture in the page."""
    return Picture(inline(plots.png(figure), "png"), alt)


def inline(content: bytes, kind: str) -> str:
    """An image file as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def curves(rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """A picture a panel, so that a phone shows them one below the other."""
    return [
        picture(
            plots.learning_curves({"": rows}, [title]),
            f"{title} over {len(rows)} epochs",
        )
        for title in plots.CURVES
    ]


def bands(of: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Picture]:
    """Mean and spread over members of each curve, a picture a panel."""
    return [
        picture(plots.bands(of, {metric: title}), f"{title}, mean and spread over runs")
        for metric, title in PANELS.items()
    ]


def of_test(
    labels_N: Int[np.ndarray, " N"],
    probability_N: Float[np.ndarray, " N"],
    told: Mapping[str, Any],
) -> list[Picture]:
    """Confusion, ROC, precision–recall and reliability of an evaluation."""
    threshold = told["threshold"]
    auc, area = decimal(told["roc_auc"]), decimal(told["average_precision"])
    both = labels_N, probability_N
    return [
        picture(
            plots.confusion(labels_N, probability_N, threshold),
            f"Confusion matrix at threshold {threshold:.3f}",
        ),
        picture(plots.rates({f"ROC AUC {auc}": both}, "roc"), f"ROC curve, area {auc}"),
        picture(
            plots.rates({f"average precision {area}": both}, "precision-recall"),
            f"Precision–recall curve, average precision {area}",
        ),
        picture(
            plots.reliability(labels_N, probability_N),
            f"Reliability diagram, expected calibration error {decimal(told['ece'])}",
        ),
    ]


def of_pooled(
    pooled: Mapping[int, Pooled], per_seed: Sequence[Mapping[str, Any]]
) -> list[Picture]:
    """The same of a cross-validation: a curve a seed, confusion over all of them."""
    labels_N = np.concatenate([one.labels_N for one in pooled.values()])
    said_N = np.concatenate([one.predicted_N for one in pooled.values()])
    probability_N = np.concatenate([one.probability_N for one in pooled.values()])
    told = {row["seed"]: row for row in per_seed}

    def by_seed(metric: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {
            f"seed {seed}: {decimal(told[seed][metric])}": (
                one.labels_N,
                one.probability_N,
            )
            for seed, one in pooled.items()
        }

    title = "Confusion, each clip once a seed"
    return [
        picture(
            plots.confusion(labels_N, said_N.astype(float), 0.5, title),
            f"{title}, at the threshold of its own model",
        ),
        picture(plots.rates(by_seed("roc_auc"), "roc"), "ROC curve of each seed"),
        picture(
            plots.rates(by_seed("average_precision"), "precision-recall"),
            "Precision–recall curve of each seed",
        ),
        picture(
            plots.reliability(labels_N, probability_N, times=len(pooled)),
            "Reliability over all seeds",
        ),
    ]
