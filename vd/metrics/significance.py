"""Paired tests of two detectors on the same clips: arrays in, numbers out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

_LEVEL, _POWER = 0.05, 0.80
_ROUNDING = 1e-9  # differences between equal shares


def mcnemar(
    correct_a_N: Bool[np.ndarray, " N"], correct_b_N: Bool[np.ndarray, " N"]
) -> dict[str, Any]:
    """Clips that only one gets right, and McNemar's exact test (1947), two-sided.

    The test treats clips as independent.
    """
    only_a = int((correct_a_N & ~correct_b_N).sum())
    only_b = int((correct_b_N & ~correct_a_N).sum())
    differ = only_a + only_b
    p = float(stats.binomtest(only_b, differ).pvalue) if differ else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": p}


def corrected_t_test(
    differences_J: Float[np.ndarray, " J"], test_to_train: float
) -> dict[str, Any]:
    """t-test over J folds and seeds that share training clips (Nadeau and Bengio 2003).

    The variance is multiplied by 1/J + `test_to_train`, clips tested to clips trained on, in
    place of 1/J. `p` is None when all differences are the same.
    """
    count = len(differences_J)
    mean, variance = float(np.mean(differences_J)), float(np.var(differences_J, ddof=1))
    if np.ptp(differences_J) < _ROUNDING:
        equal = abs(mean) < _ROUNDING
        return {"t": 0.0, "p": 1.0} if equal else {"t": None, "p": None}
    t = float(mean / np.sqrt((1 / count + test_to_train) * variance))
    return {"t": t, "p": float(2 * stats.t.sf(abs(t), count - 1))}


def deciding_p(
    t_test: Mapping[str, Any] | None, tests: Sequence[Mapping[str, Any]]
) -> tuple[str, float]:
    """The corrected t-test and its p or, where it has none, McNemar's and the largest p."""
    if t_test is not None and t_test["p"] is not None:
        return "corrected resampled t-test", float(t_test["p"])
    return "McNemar's exact test", max(float(test["p"]) for test in tests)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number (Holm 1979); a None stays and does not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def clips_needed(discordant_share: float, difference: float = 0.01) -> int:
    """Clips that show a difference of accuracy at 5 %, two-sided, with 80 % power.

    n = (z₁ √ψ + z₂ √(ψ − δ²))² / δ² (Connor 1987, of McNemar's test), ψ being the share of
    clips that only one of the two gets right, which is at least δ.
    """
    psi = max(discordant_share, difference)
    z_level, z_power = stats.norm.isf(_LEVEL / 2), stats.norm.isf(1 - _POWER)
    root = z_level * np.sqrt(psi) + z_power * np.sqrt(psi - difference**2)
    return int(np.ceil((root / difference) ** 2))
