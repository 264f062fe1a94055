"""Temperature and threshold, fitted on validation: arrays in, numbers out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import expit, ndtr

FALSE_ALARMS = 0.05  # share of non-violent clips, of the second operating point
_CANDIDATES = 1001
_LOG_TEMPERATURE_BOUNDS = (np.log(0.05), np.log(20.0))


@dataclass(frozen=True)
class Calibration:
    """`probability` = sigmoid(logit / temperature); violent at `threshold` and above."""

    temperature: float
    threshold: float
    threshold_source: str
    false_alarm_threshold: float | None = None  # at FALSE_ALARMS; None: not fitted

    def __post_init__(self) -> None:
        """Refuse what no fit gives: `ValueError`."""
        if not (0 < self.temperature < float("inf") and 0 <= self.threshold <= 1):
            raise ValueError("temperature or threshold out of range")
        if not 0 <= (self.false_alarm_threshold or 0) <= 2:
            raise ValueError("false_alarm_threshold out of range")

    def probability(self, logit_N: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
        """Probability of violence from raw logits, in float64."""
        result: np.ndarray = expit(np.asarray(logit_N, np.float64) / self.temperature)
        return result


def fit(
    logit_N: Float[np.ndarray, " N"], labels_N: Int[np.ndarray, " N"]
) -> Calibration:
    """Temperature by likelihood (Guo et al. 2017), threshold by smoothed balanced accuracy.

    The likelihood is of Platt's targets (1999), (n₁ + 1) / (n₁ + 2) and 1 / (n₀ + 2), so that
    a part without a mistake gives no certainty.
    """
    counts = np.bincount(labels_N, minlength=2)
    targets_N = np.array([1 / (counts[0] + 2), (counts[1] + 1) / (counts[1] + 2)])[
        labels_N
    ]

    def negative_log_likelihood(log_temperature: float) -> float:
        scaled = logit_N / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0.0, scaled) - targets_N * scaled))

    found = minimize_scalar(
        negative_log_likelihood, bounds=_LOG_TEMPERATURE_BOUNDS, method="bounded"
    )
    temperature = float(np.exp(found.x))
    probability_N = expit(logit_N / temperature)
    return Calibration(
        temperature,
        float(expit(_best_threshold(logit_N / temperature, labels_N))),
        "validation, best balanced accuracy",
        false_alarm_threshold(probability_N, labels_N),
    )


def false_alarm_threshold(
    probability_N: Float[np.ndarray, " N"],
    labels_N: Int[np.ndarray, " N"],
    share: float = FALSE_ALARMS,
) -> float | None:
    """The least threshold that at most `share` of the non-violent clips reach.

    Midway between two scores, or just above the highest; None without such a clip.
    """
    calm = np.sort(probability_N[labels_N == 0])[::-1]
    if not len(calm):
        return None
    below = calm[int(share * len(calm) + 1e-9)]  # the first that must not be reached
    higher = probability_N[probability_N > below]
    just_above = np.nextafter(below, np.inf)
    return float(
        max((below + higher.min()) / 2, just_above) if len(higher) else just_above
    )


def _best_threshold(
    logit_N: Float[np.ndarray, " N"], labels_N: Int[np.ndarray, " N"]
) -> float:
    """The logit of best balanced accuracy; of several as good, that nearest to 0.

    Each class's logits are smoothed by a Gaussian of width σ · n^(−1/5) (Scott 1992), σ the
    lesser of deviation and interquartile range / 1.35, which one wild logit does not move:
    the best threshold of a few clips is mostly chance (docs/results.md).
    """
    classes = [logit_N[labels_N == label] for label in np.unique(labels_N)]
    ends = np.quantile(classes[0], [0.05, 0.95]), np.quantile(classes[-1], [0.05, 0.95])
    candidates = np.append(np.linspace(np.min(ends), np.max(ends), _CANDIDATES), 0.0)
    recalls = []
    for label, own in zip(np.unique(labels_N), classes, strict=True):
        spread = np.subtract(*np.quantile(own, [0.75, 0.25])) / 1.35
        width = max(min(np.std(own), spread) * len(own) ** -0.2, 1e-9)
        above_CxN = ndtr((own - candidates[:, None]) / width)
        recalls.append(np.mean(above_CxN if label else 1 - above_CxN, axis=1))
    balanced_C = np.mean(recalls, axis=0)
    best = candidates[balanced_C >= balanced_C.max() - 1e-9]
    return float(best[np.argmin(np.abs(best))])
