"""`vd compare`: runs or cross-validations against the first of them, on the same clips.

One alone is compared with the linear probe beside it.

1. All are read; unless they tested the same clips in the same folds nothing is compared.
2. The difference of accuracy, and of ROC AUC, is taken clip by clip, the mean over seeds;
   its interval resamples whole groups.
3. McNemar's exact test, of each seed; a corrected t-test over folds and seeds. The latter's
   p-value counts where there is one, else the largest of McNemar's; it is corrected for the
   number of comparisons.
4. A difference is shown when its interval excludes 0 and that p-value is under 0.05.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vd import plots
from vd.console import say
from vd.errors import VdError
from vd.evaluation.crossval import collapse_of, flat_row, spread
from vd.evaluation.paired import accuracy_difference, auc_difference
from vd.evaluation.predictions import (
    Member,
    pooled_by_seed,
    read_members,
    read_probes,
)
from vd.files import write_csv, write_json
from vd.metrics.binary import (
    METRICS,
    accuracy,
    collapsed,
    interval_warnings,
    shown,
)
from vd.metrics.significance import corrected_t_test, deciding_p, holm, mcnemar
from vd.training.log import read_metrics

PANELS = {"val_loss": "Validation loss", "val_accuracy": "Validation accuracy at 0.5"}
_SIGNIFICANT = 0.05


class Side:
    """One run or cross-validation, read from its folder."""

    def __init__(self, name: str, folder: Path, of_probe: bool = False) -> None:
        self.name, self.folder, self.of_probe = name, folder, of_probe
        self.members = read_members(folder)
        if of_probe:
            self.members = read_probes(self.members)
            if not self.members:
                raise VdError(
                    f"{folder} was trained without a linear probe beside it; name another "
                    "folder to compare it with."
                )
        self.seeds = pooled_by_seed(self.members)
        self.first = next(iter(self.seeds.values()))  # the clips of the first seed
        self.is_crossval = self.members[0].fold is not None


def compare(folders: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """Compare every further folder with the first; returns the content of compare.json.

    A single folder is compared with the linear probe beside it. `out` gets compare.json,
    tables and pictures. Raises `VdError` unless all have tested the same clips.
    """
    if not folders:
        raise VdError("vd compare needs a folder; name one or more.")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = list(map(str, folders))
    sides = list(map(Side, names, folders))
    if len(sides) == 1:
        sides.insert(0, Side("the linear probe", folders[0], of_probe=True))
    pairs = [_compare_two(sides[0], side) for side in sides[1:]]
    corrected = holm([pair["p"] for pair in pairs])
    for pair, p in zip(pairs, corrected, strict=True):
        ends = pair["accuracy_difference_ci95"]
        apart = ends is not None and (ends[0] > 0 or ends[1] < 0)
        pair["p_holm"] = p
        pair["shown"] = bool(apart and p is not None and p < _SIGNIFICANT)
        pair["verdict"] = _verdict(pair, len(pairs))
    result = {
        "baseline": sides[0].name,
        "comparisons": pairs,
        "warnings": _warnings(sides, pairs[0]["groups"]),
    }
    if out is not None:
        _write(out, result, sides)
    return result


def _check_paired(a: Side, b: Side) -> None:
    """Raise `VdError` unless clips, labels, folds and seeds of both are the same.

    Clips are paired by content, copies in the order of their paths.
    """
    one, other = a.first, b.first
    remedy = "compare what was tested on the same clips, with the same splits and seeds"
    if not np.array_equal(one.ids, other.ids):
        raise VdError(
            f"{a.folder} and {b.folder} were tested on different clips "
            f"({len({*one.ids} ^ {*other.ids})} are in only one of them); {remedy}."
        )
    for words, values in (("another label", "labels_N"), ("another fold", "fold_N")):
        differs = getattr(one, values) != getattr(other, values)
        if differs.any():
            raise VdError(
                f"{one.paths[int(np.argmax(differs))]!r} has {words} in {b.folder} than in "
                f"{a.folder}; {remedy}."
            )
    if a.is_crossval and list(a.seeds) != list(b.seeds):
        raise VdError(
            f"{a.folder} has the seeds {list(a.seeds)} and {b.folder} {list(b.seeds)}; "
            f"{remedy}."
        )


def _compare_two(a: Side, b: Side) -> dict[str, Any]:
    """The figures of one comparison, without those that depend on the others."""
    _check_paired(a, b)
    sides = list(a.seeds.values()), list(b.seeds.values())
    one, other = a.first, b.first
    labels_N = one.labels_N
    right_a, right_b = (
        np.stack([seed.predicted_N == (labels_N == 1) for seed in side])
        for side in sides
    )
    cluster_N = (one if one.grouped else other).cluster_N
    seeds = zip(a.seeds, b.seeds, right_a, right_b, strict=True)
    tests = [
        {"seed_a": seed_a, "seed_b": seed_b, **mcnemar(right_a_N, right_b_N)}
        for seed_a, seed_b, right_a_N, right_b_N in seeds
    ]
    t_test = _t_test(a.members, b.members) if a.is_crossval else None
    test, p = deciding_p(t_test, tests)
    return {
        "a": a.name,
        "b": b.name,
        "n": len(labels_N),
        "groups": len(np.unique(cluster_N)) if one.grouped or other.grouped else None,
        **accuracy_difference(right_a, right_b, cluster_N),
        **auc_difference(*sides, cluster_N),
        "mcnemar": tests,
        "corrected_t_test": t_test,
        "test": test,
        "p": p,
    }


def _t_test(a: Sequence[Member], b: Sequence[Member]) -> dict[str, Any]:
    """Corrected t-test over the members of both, by fold and seed."""
    tested = np.mean([len(member.predictions.paths) for member in a])
    share = float(tested / np.mean([member.train_clips for member in a]))
    result = corrected_t_test(_accuracies(b) - _accuracies(a), share)
    return {**result, "test_to_train": share}


def _accuracies(members: Sequence[Member]) -> np.ndarray:
    """Accuracy of each fold and seed."""
    tested = [member.predictions for member in members]
    return np.array([accuracy(of.labels_N, of.predicted_N) for of in tested])


def _verdict(pair: Mapping[str, Any], comparisons: int) -> str:
    """The comparison in one sentence that a person can repeat."""
    better, worse, ends = pair["b"], pair["a"], pair["accuracy_difference_ci95"]
    if pair["accuracy_difference"] < 0:
        better, worse = worse, better
        ends = ends and [-end for end in reversed(ends)]
    between = "no interval: the groups show no spread"
    if ends:
        low, high = (signed(100 * end) for end in ends)
        between = f"95 % interval {low} to {high}"
    p = f"{pair['test']}: p = {pair['p']:.2g}"
    if comparisons > 1:
        p += f", {pair['p_holm']:.2g} after Holm's correction for {comparisons}"
    outcome = "shown" if pair["shown"] else "not shown"
    points = 100 * abs(pair["accuracy_difference"])
    claim = f"{better} is better than {worse} by {points:.3g} points of accuracy"
    if points == 0:
        claim = f"{worse} and {better} are equally accurate"
    return f"{claim}, {between} ({p}): {outcome}"


def _warnings(sides: Sequence[Side], groups: int | None) -> list[str]:
    """What limits the comparisons, in sentences."""
    warnings = []
    for side in sides:
        fallen = [
            member.run_dir.name
            for member in side.members
            if collapsed(member.predictions.labels_N, member.predictions.predicted_N)
        ]
        if fallen:
            warnings.append(f"{side.name}: {collapse_of(fallen, len(side.members))}")
    first = sides[0].first
    warnings += interval_warnings(first.labels_N, first.cluster_N, groups is not None)
    if not sides[0].is_crossval:
        warnings.append(
            "McNemar's test treats clips as independent, and one training run of each does "
            "not separate the effect of a setting from that of a seed: use vd crossval with "
            "several --seeds"
        )
    return warnings


def signed(value: float) -> str:
    """A number with the minus sign of prose."""
    return f"{value:z.1f}".replace("-", "−")


def text(result: Mapping[str, Any]) -> str:
    """What is printed: each verdict, with the figures that it compares."""
    lines = []
    for pair in result["comparisons"]:
        lines.append(pair["verdict"])
        for side in ("a", "b"):
            figures = ", ".join(
                f"{METRICS[name].label} {shown(name, pair[f'{name}_{side}'])}"
                for name in ("accuracy", "roc_auc")
            )
            lines.append(f"  {pair[side]}: {figures}")
    return "\n".join(lines)


def _write(out: Path, result: Mapping[str, Any], sides: Sequence[Side]) -> None:
    """Write compare.json and compare.csv, ROC curves, and validation curves over epochs."""
    if any((out / name).exists() for name in ("config.json", "crossval.json")):
        raise VdError(
            f"--out {out} is the folder of a run or a cross-validation; name another one."
        )
    out.mkdir(parents=True, exist_ok=True)
    scores = {s.name: (s.first.labels_N, s.first.probability_N) for s in sides}
    plots.save(plots.roc(scores), out / "roc.png")
    curves = {
        side.name: curve([member.run_dir for member in side.members])
        for side in sides
        if not side.of_probe  # which has no epochs
    }
    rows = [{"run": name, **row} for name, of in curves.items() for row in of]
    write_csv(out / "curves.csv", rows)
    plots.save(plots.bands(curves, PANELS), out / "curves.png")
    write_csv(out / "compare.csv", list(map(flat_row, result["comparisons"])))
    write_json(out / "compare.json", result)
    say(f"compare.json, tables and pictures are in {out}")


def curve(run_dirs: Sequence[Path]) -> list[dict[str, Any]]:
    """Mean and standard deviation of each validation metric over runs, a row per epoch."""
    logs = [{row["epoch"]: row for row in read_metrics(run)} for run in run_dirs]
    rows = []
    for epoch in sorted({epoch for log in logs for epoch in log}):
        there = [log[epoch] for log in logs if epoch in log]
        row: dict[str, Any] = {"epoch": epoch, "members": len(there)}
        for name in PANELS:
            figures = spread([row.get(name) for row in there])
            row |= {f"{name}_{key}": figures[key] for key in ("mean", "sd")}
        rows.append(row)
    return rows
