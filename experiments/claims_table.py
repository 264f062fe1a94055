"""docs/claims.md from the lines of claims.jsonl: what was promised, what was measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vd.files import write_text

Line = dict[str, Any]


class Claim(NamedTuple):
    """`better` against `base`, and the points of accuracy that were promised."""

    words: str
    base: str
    better: str
    least: float | None = None  # at least so many
    within: float | None = None  # or at most so many worse


class Measured(NamedTuple):
    """A difference of accuracy in points, paired over clips, folds and seeds."""

    difference: float
    low: float
    high: float
    p: float | None  # of the corrected t-test; None where nothing pairs the folds
    needed: int  # clips that would show `to_show` points
    to_show: float


CLAIMS = (
    Claim("`optimized` is better than `original`", "original", "optimized", least=0.0),
    Claim("learning rate 0.0005 instead of 0.001: +1 to 2", "lr1e3", "optimized", 1.0),
    Claim("0.001 with warmup 10 is as good", "optimized", "lr1e3_warmup10", within=1.0),
    Claim("alpha 0.5 instead of 0.25: +0.3 to 0.7", "optimized", "alpha05", 0.3),
    Claim("patience 15 instead of 10: +0.5 to 1", "patience10", "optimized", 0.5),
    Claim("150 epochs instead of 100: better", "epochs100", "optimized", 0.0),
    Claim("best epoch by ROC AUC", "optimized", "recommended"),
    Claim("a cosine that ends where the run does (85)", "optimized", "horizon85"),
    Claim("batch 32 instead of 64, equal epochs", "optimized", "batch32"),
    Claim("batch 128 instead of 64, equal epochs", "optimized", "batch128"),
    Claim(
        "batch 32 instead of 64, equal steps (but 2 epochs of warmup for 2.5)",
        "optimized",
        "batch32_steps",
    ),
    Claim("batch 128 instead of 64, equal steps", "optimized", "batch128_steps"),
    Claim("label smoothing 0.1 instead of none", "smoothing0", "optimized"),
    Claim("label smoothing 0.1 instead of 0.05", "smoothing005", "optimized"),
    Claim("clip norm 1.0 instead of none", "no_clip", "optimized"),
    Claim("gamma 2 instead of 0", "gamma0", "optimized"),
    Claim("gamma 2 instead of 1", "gamma1", "optimized"),
    Claim("plain cross-entropy (gamma 0, alpha 0.5)", "optimized", "cross_entropy"),
    Claim("augmentation on", "no_augmentation", "optimized"),
    Claim("temporal jitter on", "no_jitter", "optimized"),
    Claim("mirrored views drawn", "views_unused", "views"),
    Claim("random folds instead of grouped ones", "optimized", "random_folds"),
    Claim("bfloat16 loses nothing", "optimized", "bfloat16", within=1.0),
)
_LEVEL = 0.05
_FIGURES = "accuracy", "recall_violent", "recall_nonviolent", "roc_auc", "ece"
_COLUMNS = (
    "cell", "what differs", "accuracy (95 % interval)", "recall violent", "non-violent", "ROC AUC", "ECE",
    "threshold", "accuracy, recall violent at 0.5", "best epoch, last", "steps clipped",
)  # fmt: skip
_HEAD = """# The recipe's promises

Made by `experiments/claims.py` from [{log}]({log}). A cell is one setting, cross-validated with {folds} folds ×
{seeds} seeds in float32 (the cell `bfloat16` apart); "what differs" names its settings that are not those of `optimized`. The
clips of docs/claims.md are the public ones of [results.md](results.md).
A difference is in points of accuracy, paired over clips, folds and seeds; its 95 % interval resamples whole groups; p is
the corrected resampled t-test's (Nadeau and Bengio 2003), or the largest of McNemar's where all folds differ by the same;
Holm's correction over the rows of a data set in p (Holm). Early
stopping and threshold come from an inner validation part; every clip is tested once a seed.

A promise **holds** when the whole interval keeps it and p (Holm) < 0.05, where there is a p (random folds cannot be paired
with grouped ones); "as good" and "loses nothing" by the interval alone, when it has no more than a point of loss. A promise
**does not hold** when the whole interval breaks it, and else it cannot be decided here; then the last
column says how many clips in such groups would show the promised points, or one point, by McNemar's test (Connor 1987). That bfloat16 doubles the speed is another matter: on a large GPU it did not ([performance.md](performance.md)).

How the threshold is found was itself chosen on these clips ([results.md](results.md), "The threshold of few validation
clips"), so accuracies, and what alpha does to them, flatter; ROC AUC does not depend on it. By the rule before it
alpha 0.5 was +0.7 points on SCFD (−1.1 to +2.8).

Two promises have no row. A phase of very low rates at epochs 61 to 85 cannot come before a stop: over 150 epochs the rate is
still half its peak at 75, and most runs ended long before (median last epoch, below); `horizon85` ends the cosine where the
run does. And 300 to 500 steps an epoch, called the sweet spot, need twenty thousand clips: here an epoch has 1 to 6.
{unfinished}"""


def write_table(
    lines: Sequence[Line], path: Path, wanted: Sequence[tuple[str, str]] = ()
) -> None:
    """Write claims.md from the finished cells; `wanted` are data set and name of all."""
    if not lines:
        return
    members = lines[0]["members"]
    folds, seeds = ({row[key] for row in members} for key in ("fold", "seed"))
    done = {(line["dataset"], line["cell"]) for line in lines}
    missing = [
        f"{name} on {dataset}"
        for dataset, name in wanted
        if (dataset, name) not in done
    ]
    unfinished = (
        f"\n**Unfinished**: {len(missing)} of {len(wanted)} cells are not there yet "
        f"({', '.join(missing)}).\n"
        if missing
        else ""
    )
    log = path.with_suffix(".jsonl").name
    head = _HEAD.format(
        log=log, folds=len(folds), seeds=len(seeds), unfinished=unfinished
    )
    parts = [head]
    for dataset in dict.fromkeys(line["dataset"] for line in lines):
        of = {line["cell"]: line for line in lines if line["dataset"] == dataset}
        parts += [f"## {dataset}\n", _claims(of), _cells(of)]
    write_text(path, "\n".join(parts))


def _claims(of: dict[str, Line]) -> str:
    """The table of verdicts."""
    from vd.metrics.significance import holm

    claims = [claim for claim in CLAIMS if {claim.base, claim.better} <= of.keys()]
    measured = [measure(of[claim.base], of[claim.better], claim) for claim in claims]
    corrected = holm([one.p for one in measured])
    rows = [
        "| promise | difference | 95 % interval | p | p (Holm) | verdict | clips needed |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim, one, p in zip(claims, measured, corrected, strict=True):
        verdict = judge(claim, one, p)
        needed = (
            f"{one.needed:,} for {one.to_show:g} point{'s' * (one.to_show != 1)}"
            if "not be" in verdict
            else ""
        )
        rows.append(
            f"| {claim.words} | {_points(one.difference)} | {_points(one.low)} to "
            f"{_points(one.high)} "
            f"| {_p(one.p)} | {_p(p)} | {verdict} | {needed} |"
        )
    return "\n".join(rows) + "\n"


def measure(base: Line, better: Line, claim: Claim) -> Measured:
    """The paired difference of two cells; raises `ValueError` for other clips.

    Random folds are not those of the other cell, so there the t-test has nothing to pair.
    """
    import numpy as np

    from vd.metrics.intervals import difference_interval, resampled_ratio
    from vd.metrics.significance import (
        clips_needed,
        corrected_t_test,
        deciding_p,
        mcnemar,
    )

    same_folds = base["clusters"] == better["clusters"]
    random = better["cell"] == "random_folds"
    if base["clips"] != better["clips"] or not (same_folds or random):
        raise ValueError(f"{base['cell']} and {better['cell']} tested other clips")
    right_a, right_b = (
        np.array([[bit == "1" for bit in seed] for seed in line["correct"]], float)
        for line in (base, better)
    )
    difference_N = (right_b - right_a).mean(axis=0)
    cluster_N = np.array(base["clusters"])
    values_R = resampled_ratio(difference_N, np.ones(len(cluster_N)), cluster_N)
    interval = difference_interval(difference_N, values_R, cluster_N)
    low, high = interval or (float("nan"),) * 2
    accuracies = [
        {(row["fold"], row["seed"]): row["accuracy"] for row in line["members"]}
        for line in (base, better)
    ]
    apart = np.array([accuracies[1][key] - accuracies[0][key] for key in accuracies[0]])
    share = float(np.mean([row["n"] / row["n_train"] for row in base["members"]]))
    p: float | None = None
    if same_folds:
        seeds = zip(right_a == 1, right_b == 1, strict=True)
        tests = [mcnemar(a, b) for a, b in seeds]
        _, p = deciding_p(corrected_t_test(apart, share), tests)
    alone = float(np.var(difference_N)) / len(difference_N)
    effect = max(1.0, float(np.var(values_R)) / alone) if alone else 1.0
    to_show = claim.least or claim.within or 1.0
    needed = clips_needed(float(np.mean(right_a != right_b)), to_show / 100)
    return Measured(
        100 * float(difference_N.mean()),
        100 * low,
        100 * high,
        p,
        int(np.ceil(needed * effect)),
        to_show,
    )


def judge(claim: Claim, measured: Measured, p: float | None) -> str:
    """Whether a promise holds, by the interval; a gain needs `p` < 0.05, where known.

    `p` is corrected for the number of rows.
    """
    significant = p is None or p < _LEVEL
    undecided = "cannot be decided here"
    if claim.within is not None:
        if measured.low >= -claim.within:
            return "holds"
        return "does not hold" if measured.high < -claim.within else undecided
    if claim.least is not None:
        if measured.low >= claim.least and measured.low > 0 and significant:
            return "holds"
        return "does not hold" if measured.high < claim.least else undecided
    if measured.low > 0 and significant:
        return "nothing promised: better"
    worse = measured.high < 0 and significant
    return f"nothing promised: {'worse' if worse else undecided}"


def _cells(of: dict[str, Line]) -> str:
    """The table of settings: figures, and where they stopped."""
    import numpy as np

    rows = [
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for name, line in of.items():
        members = line["members"]
        mean = {key: line[key]["mean"] for key in _FIGURES}
        low, high = line["accuracy"]["ci95"] or (float("nan"),) * 2
        threshold, best, last, clipped = (
            np.array([row[key] for row in members])
            for key in ("threshold", "best_epoch", "last_epoch", "clipped")
        )
        half = [np.mean([s[key] for s in line["at_half"]]) for key in ("accuracy", "recall_violent")]  # fmt: skip
        rows.append(
            f"| {name} | {_settings(line)} | {100 * mean['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f}) "
            f"| {100 * mean['recall_violent']:.1f} | {100 * mean['recall_nonviolent']:.1f} "
            f"| {mean['roc_auc']:.3f} | {mean['ece']:.3f} | {threshold.mean():.2f} ± "
            f"{threshold.std():.2f} | {100 * half[0]:.1f}, {100 * half[1]:.1f} | "
            f"{np.median(best):.0f}, {np.median(last):.0f} | {100 * clipped.mean():.0f} % |"
        )
    groups = next(iter(of.values()))["groups"]
    known = "no groups known" if groups is None else f"{groups} groups"
    clips = next(iter(of.values()))["n"]
    return "\n".join([f"{clips} clips, {known}.\n", *rows]) + "\n"


def _settings(line: Line) -> str:
    """The settings of a cell that are not those of `optimized`."""
    if line["cell"] == "random_folds":
        return "no groups given"
    settings = [f"{key} {value}" for key, value in line["settings"].items()]
    return ", ".join(settings).replace("_", " ") or "–"


def _points(value: float) -> str:
    return f"{value:+z.1f}".replace("-", "−")


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"
