"""Runs or cross-validations against the first of them, on the same clips.

1. Both are read; unless they tested the same clips in the same folds nothing is compared.
2. The difference of accuracy, and of ROC AUC, is taken clip by clip, the mean over seeds;
   its interval resamples whole groups.
3. McNemar's exact test, of each seed; a corrected t-test over folds and seeds. The latter's
   p-value counts where there is one, else the largest of McNemar's; it is corrected for the
   number of comparisons.
4. A difference is shown when its interval leaves out 0 and that p-value is under 0.05.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vd.errors import VdError
from vd.evaluation.crossval import collapse_of
from vd.evaluation.pairing import Paired, Side, check_paired, pair_clips, read_sides
from vd.evaluation.results import Member
from vd.evaluation.verdict import sentences
from vd.metrics.binary import collapsed, roc_auc
from vd.metrics.bootstrap import (
    RESAMPLES,
    Interval,
    difference_interval,
    interval,
    resample_weights,
)
from vd.metrics.significance import (
    clips_needed,
    corrected_t_test,
    deciding_p,
    holm,
    mcnemar,
)
from vd.metrics.weighted import roc_areas

_SIGNIFICANT = 0.05
_POINT = 0.01
_SOURCE = (
    "n = (z₁ √ψ + z₂ √(ψ − δ²))² / δ², ψ the share of clips that one alone gets right, δ = "
    "0.01, two-sided 5 %, power 80 % (Connor 1987)"
)


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """Compare every further folder with the first; returns the content of compare.json.

    Raises `VdError` when they are not paired: other clips, labels, folds or seeds.
    """
    if len(folders) < 2:
        raise VdError("vd compare needs two or more folders; name them.")
    sides = read_sides(folders)
    for side in sides[1:]:
        check_paired(sides[0], side)
    made = [_compare_two(sides[0], side) for side in sides[1:]]
    corrected = holm([pair["p"] for pair in made])
    for pair, p in zip(made, corrected, strict=True):
        pair["p_holm"] = p
        pair["shown"] = _is_shown(pair)
        pair["sentences"] = sentences(pair, len(made))
    return {
        "baseline": sides[0].name,
        "folders": {side.name: str(side.folder.absolute()) for side in sides},
        "n": made[0]["n"],
        "resamples": RESAMPLES,
        "clips_needed_by": _SOURCE,
        "comparisons": made,
        "warnings": [
            f"{side.name}: {collapse_of(fallen, len(side.members))}"
            for side in sides
            if (fallen := _fallen(side.members))
        ],
    }


def _fallen(members: Sequence[Member]) -> list[str]:
    """The names of the members that fell to one class."""
    return [
        member.run_dir.name
        for member in members
        if collapsed(member.predictions.labels_N, member.predicted_N)
    ]


def _compare_two(a: Side, b: Side) -> dict[str, Any]:
    """All figures of one comparison, but for what hangs on the others."""
    paired = pair_clips(a, b)
    difference_N = (
        paired.correct_b_KxN.astype(float) - paired.correct_a_KxN.astype(float)
    ).mean(axis=0)
    accuracy, auc, effect = _differences(paired, difference_N)
    discordant = float(np.mean(paired.correct_a_KxN != paired.correct_b_KxN))
    gained = int(paired.correct_b_KxN.sum()) - int(paired.correct_a_KxN.sum())
    tests = [
        {"seed_a": seed_a, "seed_b": seed_b, **mcnemar(correct_a_N, correct_b_N)}
        for seed_a, seed_b, correct_a_N, correct_b_N in zip(
            a.seeds, b.seeds, paired.correct_a_KxN, paired.correct_b_KxN, strict=True
        )
    ]
    t_test = _t_test(a.members, b.members)
    by_folds = t_test is not None and t_test["p"] is not None
    needed = clips_needed(discordant, _POINT)
    return {
        "a": a.name,
        "b": b.name,
        "n": len(difference_N),
        "groups": len(np.unique(paired.cluster_N)) if paired.grouped else None,
        "accuracy_a": float(np.mean(paired.correct_a_KxN)),
        "accuracy_b": float(np.mean(paired.correct_b_KxN)),
        "accuracy_difference": gained / paired.correct_a_KxN.size,  # 0 where equal
        "accuracy_difference_ci95": accuracy,
        **auc,
        "mcnemar": tests,
        "corrected_t_test": t_test,
        "test": "corrected resampled t-test" if by_folds else "McNemar's exact test",
        "p": deciding_p(t_test, tests),
        "discordant_share": discordant,
        "clips_needed_for_1_point": needed,
        "design_effect": effect,
        "clips_needed_in_such_groups": int(np.ceil(needed * max(1.0, effect or 1.0))),
    }


def _differences(
    paired: Paired, difference_N: Float[np.ndarray, " N"]
) -> tuple[Interval, dict[str, Any], float | None]:
    """Interval of the difference of accuracy; of ROC AUC all; the design effect of groups."""
    accuracy, areas = [], []
    sides = paired.probability_a_KxN, paired.probability_b_KxN
    for weights in resample_weights(paired.cluster_N):
        accuracy.append((weights * difference_N).sum(axis=1) / weights.sum(axis=1))
        auc_a_R, auc_b_R = (
            np.mean([roc_areas(paired.labels_N, p, weights) for p in side], axis=0)
            for side in sides
        )
        areas.append(auc_b_R - auc_a_R)
    values_R = np.concatenate(accuracy)
    found = difference_interval(difference_N, values_R, paired.cluster_N)
    alone = float(np.var(difference_N)) / len(difference_N)
    effect = float(np.var(values_R)) / alone if found and alone > 0 else None
    auc_a, auc_b = (_mean_area(paired, side) for side in sides)
    auc = {
        "roc_auc_a": auc_a,
        "roc_auc_b": auc_b,
        "roc_auc_difference": None if auc_a is None or auc_b is None else auc_b - auc_a,
        "roc_auc_difference_ci95": _spread(np.concatenate(areas), paired),
    }
    return found, auc, effect


def _spread(difference_R: Float[np.ndarray, " R"], paired: Paired) -> Interval:
    """Interval of a difference of AUC; None when all resamples show the same: not known."""
    shows = len(np.unique(difference_R[np.isfinite(difference_R)])) > 1
    return interval(difference_R, paired.cluster_N) if shows else None


def _mean_area(
    paired: Paired, probability_KxN: Float[np.ndarray, "K N"]
) -> float | None:
    """ROC AUC, the mean over seeds; None with one class only."""
    areas = [roc_auc(paired.labels_N, p_N) for p_N in probability_KxN]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else None


def _t_test(a: Sequence[Member], b: Sequence[Member]) -> dict[str, Any] | None:
    """Corrected t-test over the members of both, by fold and seed; None for single runs."""
    if a[0].fold is None:
        return None

    def accuracies(members: Sequence[Member]) -> np.ndarray:
        ordered = sorted(members, key=lambda m: (m.seed, m.fold or 0))
        return np.array(
            [np.mean(m.predicted_N == (m.predictions.labels_N == 1)) for m in ordered]
        )

    tested = np.mean([len(m.predictions.paths) for m in a])
    trained = np.mean([m.train_clips for m in a])
    share = float(tested) / max(float(trained), 1.0)
    found = corrected_t_test(accuracies(b) - accuracies(a), share)
    return found and {**found, "test_to_train": share}


def _is_shown(pair: dict[str, Any]) -> bool:
    """Whether interval and corrected p-value both speak for a difference."""
    found, p = pair["accuracy_difference_ci95"], pair["p_holm"]
    apart = found is not None and (found[0] > 0 or found[1] < 0)
    return bool(apart and p is not None and p < _SIGNIFICANT)
