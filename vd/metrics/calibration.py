"""Temperature and threshold, fitted on validation: arrays in, numbers out."""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

FALSE_ALARMS = 0.05  # share of non-violent clips, of the second operating point
_SECONDS_AN_HOUR = 3600
_CANDIDATES = 1001
_HOLD = 20.0  # of the threshold to the loss's own (experiments/threshold.py)
_TEMPERATURES = (0.05, 20.0)  # the smallest and the largest that are tried


@dataclass(frozen=True)
class Calibration:
    """`probability` = sigmoid(logit / temperature); violent at `threshold` and above."""

    temperature: float
    threshold: float
    threshold_source: str
    false_alarm_threshold: float | None = None  # at FALSE_ALARMS; None: not fitted
    # of a window, which FALSE_ALARMS of the calm clips reach; None: not fitted
    event_threshold: float | None = None
    event_threshold_source: str = ""
    calm_hours: float | None = None  # of the clips behind it
    window_seconds: float | None = None
    stride_seconds: float | None = None

    def probability(self, logit_N: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
        """Probability of violence from raw logits, in float64."""
        return sigmoid(np.asarray(logit_N, np.float64) / self.temperature)


def sigmoid(value_N: Float[np.ndarray, "*N"] | float) -> Float[np.ndarray, "*N"]:
    """1 / (1 + e⁻ˣ) in float64, by the C library: to the bit what SciPy's expit gives.

    NumPy's exp has other last bits, and SciPy takes .4 s to import.
    """
    value_N = np.asarray(value_N, np.float64)
    result = [1 / (1 + math.exp(min(-value, 709.0))) for value in value_N.flat]
    return np.array(result).reshape(value_N.shape)


def fit(
    logit_N: Float[np.ndarray, " N"],
    labels_N: Int[np.ndarray, " N"],
    even_logit: float = 0.0,
    source: str = "validation",
) -> Calibration:
    """Temperature by likelihood (Guo et al. 2017), threshold by smoothed balanced accuracy.

    The likelihood is of Platt's targets (1999), (n₁ + 1) / (n₁ + 2) and 1 / (n₀ + 2), so that
    a part without a mistake gives no certainty. `even_logit` is the logit of least mean loss
    for a clip without information (`vd.models.losses.even_logit`); the fewer the clips, the
    nearer to it the threshold. `source` is where the logits come from.
    """
    from scipy.optimize import minimize_scalar  # prediction imports no SciPy

    counts = np.bincount(labels_N, minlength=2)
    targets_C = np.array([1, counts[1] + 1]) / (counts + 2)
    targets_N = targets_C[labels_N]

    def negative_log_likelihood(log_temperature: float) -> float:
        scaled = logit_N / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0.0, scaled) - targets_N * scaled))

    result = minimize_scalar(
        negative_log_likelihood, bounds=np.log(_TEMPERATURES), method="bounded"
    )
    temperature = float(np.exp(result.x))
    probability_N = sigmoid(logit_N / temperature)
    return Calibration(
        temperature,
        float(sigmoid(_best_threshold(logit_N, labels_N, even_logit) / temperature)),
        f"{source}, best balanced accuracy near the loss's own threshold",
        false_alarm_threshold(probability_N, labels_N),
    )


def with_events(
    fitted: Calibration,
    peak_logit_N: Float[np.ndarray, " N"],
    labels_N: Int[np.ndarray, " N"],
    seconds_N: Float[np.ndarray, " N"],
    source: str,
) -> Calibration:
    """The calibration with a threshold for windows, from the highest logit of each clip's.

    `seconds_N` are the lengths of the clips. A calm clip one of whose windows reaches the
    threshold is an alarm, and 5 % of them may.
    """
    calm_N = labels_N == 0
    threshold = false_alarm_threshold(fitted.probability(peak_logit_N), labels_N)
    share = f"what {FALSE_ALARMS:.0%} of the non-violent clips reach".replace("%", " %")
    return replace(
        fitted,
        event_threshold=threshold,
        event_threshold_source=f"{source}, {share}" if calm_N.any() else "",
        calm_hours=float(seconds_N[calm_N].sum()) / _SECONDS_AN_HOUR,
    )


def false_alarm_threshold(
    probability_N: Float[np.ndarray, " N"], labels_N: Int[np.ndarray, " N"]
) -> float | None:
    """The least threshold that at most `FALSE_ALARMS` of the non-violent clips reach.

    Midway between two scores, or just above the highest; None without such a clip.
    """
    calm = np.sort(probability_N[labels_N == 0])[::-1]
    if not len(calm):
        return None
    below = calm[int(FALSE_ALARMS * len(calm) + 1e-9)]  # the first not to be reached
    higher = probability_N[probability_N > below]
    middle = (below + higher.min()) / 2 if len(higher) else below
    return float(max(middle, np.nextafter(below, np.inf)))


def _best_threshold(
    logit_N: Float[np.ndarray, " N"], labels_N: Int[np.ndarray, " N"], even: float
) -> float:
    """The logit of best balanced accuracy, less what it costs to leave `even`.

    The best threshold of a few clips is mostly chance (docs/results.md). So each class's
    logits are smoothed by a Gaussian of width σ · n^(−1/5) (Scott 1992), and a threshold x
    deviations of all logits from `even` costs 20 x² / n; `even` beyond the medians of the
    classes is taken to the nearer, for such a network has an offset of its own.
    """
    from scipy.special import ndtr

    classes = {label: logit_N[labels_N == label] for label in np.unique(labels_N)}
    medians = [np.median(own) for own in classes.values()]
    even = float(np.clip(even, min(medians), max(medians)))
    ends = [np.quantile(own, [0.05, 0.95]) for own in classes.values()]
    cut_C = np.append(np.linspace(np.min(ends), np.max(ends), _CANDIDATES), even)
    recalls = []
    for label, own in classes.items():
        width = _spread(own) * len(own) ** -0.2
        above_CxN = ndtr((own - cut_C[:, None]) / width)
        recalls.append(np.mean(above_CxN if label else 1 - above_CxN, axis=1))
    away_C = (cut_C - even) / _spread(logit_N)
    worth_C = np.mean(recalls, axis=0) - _HOLD / len(logit_N) * away_C**2
    best = cut_C[worth_C >= worth_C.max() - 1e-9]
    return float(best[np.argmin(np.abs(best - even))])


def _spread(logit_N: Float[np.ndarray, " N"]) -> float:
    """The lesser of deviation and interquartile range / 1.35, above 0."""
    quartiles = np.quantile(logit_N, [0.75, 0.25])
    return max(float(min(np.std(logit_N), np.subtract(*quartiles) / 1.35)), 1e-9)
