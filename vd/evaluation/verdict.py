"""A comparison told: sentences a person can repeat, a table, and the files of --out."""

from pathlib import Path
from typing import Any

from vd.console import say
from vd.errors import VdError
from vd.evaluation.curves import write_curves
from vd.evaluation.results import read_results
from vd.files import make_folder, write_csv, write_json

_FEW_GROUPS = 20


def write_comparison(out: Path, result: dict[str, Any]) -> None:
    """Write compare.json, compare.csv, and curves over seeds as curves.csv and curves.png."""
    if any((out / name).exists() for name in ("config.json", "crossval.json")):
        raise VdError(
            f"--out {out} is the folder of a run or a cross-validation; name another one."
        )
    make_folder(out, "--out")
    curves = {
        name: [member.run_dir for member in read_results(Path(folder))]
        for name, folder in result["folders"].items()
    }
    written = write_curves(out, curves)
    write_csv(out / "compare.csv", table_rows(result))
    write_json(out / "compare.json", result)
    names = [out / "compare.json", out / "compare.csv", *written]
    say(f"written: {', '.join(map(str, names))}")


def sentences(pair: dict[str, Any], comparisons: int) -> list[str]:
    """What a person can repeat."""
    difference, found = pair["accuracy_difference"], pair["accuracy_difference_ci95"]
    better, worse, sign = pair["b"], pair["a"], 1
    if difference < 0:
        better, worse, sign = pair["a"], pair["b"], -1
    between = "no interval, for all clips are of one group"
    if found is not None:
        low, high = sorted(sign * 100 * end for end in found)
        between = f"95 % interval {signed(low)} to {signed(high)}"
    p = f"p = {pair['p']:.2g}"
    if comparisons > 1:
        p += f", {pair['p_holm']:.2g} after Holm's correction for {comparisons}"
    verdict = "shown" if pair["shown"] else "not shown"
    points = f"{100 * abs(difference):.1f}"
    if points == "0.0":
        points = f"{100 * abs(difference):.1g}"
    first = (
        f"{better} is better than {worse} by {points} points of accuracy, "
        f"{between} ({pair['test']}: {p}): {verdict}"
    )
    if difference == 0:
        first = (
            f"{pair['a']} and {pair['b']} are equally accurate, {between} ({pair['test']}: "
            f"{p}): no difference is shown"
        )
    needed = pair["clips_needed_for_1_point"]
    second = (
        f"to show a difference of 1 point by McNemar's test at least {needed:,} clips would "
        "be needed"
        + (
            f", {pair['clips_needed_in_such_groups']:,} in groups like these"
            if pair["groups"] is not None and pair["design_effect"] is not None
            else ""
        )
        + f": one alone is right on {100 * pair['discordant_share']:.1f} % of the "
        f"{pair['n']} clips"
    )
    return [first, _areas(pair), second, _caution(pair)]


def _caution(pair: dict[str, Any]) -> str:
    """What interval and test rest on."""
    groups, t_test = pair["groups"], pair["corrected_t_test"]
    if groups is None:
        caution = "no source groups known: the interval treats clips as independent"
    elif pair["accuracy_difference_ci95"] is None:
        caution = "one group shows no spread: there is no interval"
    else:
        caution = f"the interval resamples {groups} groups"
    if t_test is not None and t_test["p"] is None:
        caution += (
            "; all folds differ by the same, which leaves the t-test nothing to go by"
        )
    if groups is not None and pair["test"].startswith("McNemar"):
        caution += "; McNemar's test treats clips as independent"
    resampled = groups or pair["n"]
    if pair["accuracy_difference_ci95"] is not None and resampled < _FEW_GROUPS:
        caution += f"; with so few ({resampled}) it is too narrow"
    if t_test is None:
        caution += (
            "; one training run of each does not tell a setting's effect from a seed's: "
            "vd crossval with several --seeds does"
        )
    return caution


def _areas(pair: dict[str, Any]) -> str:
    """The same of ROC AUC."""
    difference, found = pair["roc_auc_difference"], pair["roc_auc_difference_ci95"]
    if difference is None:
        return "ROC AUC is undefined: all clips are of one class"
    between = ""
    if found is not None:
        between = f", 95 % interval {signed(found[0], 3)} to {signed(found[1], 3)}"
    return (
        f"ROC AUC: {pair['b']} {pair['roc_auc_b']:.3f}, {pair['a']} "
        f"{pair['roc_auc_a']:.3f}, difference {signed(difference, 3)}{between}"
    )


def signed(value: float, digits: int = 1) -> str:
    """A number with the minus sign of prose."""
    return f"{value:z.{digits}f}".replace("-", "−")


def table_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of compare.csv."""
    rows = []
    for pair in result["comparisons"]:
        row = {key: pair[key] for key in ("a", "b", "n", "groups")}
        for name in ("accuracy", "roc_auc"):
            low, high = pair[f"{name}_difference_ci95"] or (None, None)
            row |= {
                f"{name}_a": pair[f"{name}_a"], f"{name}_b": pair[f"{name}_b"],
                f"{name}_difference": pair[f"{name}_difference"],
                f"{name}_difference_low": low, f"{name}_difference_high": high,
            }  # fmt: skip
        row |= {key: pair[key] for key in ("test", "p", "p_holm", "shown")}
        rows.append({k: "" if v is None else v for k, v in row.items()})
    return rows


def told_p(p: float | None) -> str:
    """A p-value for a table."""
    return "–" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def table(result: dict[str, Any]) -> str:
    """The comparison in aligned columns."""

    def number(value: Any, digits: int = 3) -> str:
        return "–" if value is None else f"{value:z.{digits}f}"

    p = "p" if len(result["comparisons"]) == 1 else "p (Holm)"
    lines = [
        ["", "accuracy", "ROC AUC", "accuracy: difference", "95 % interval", p, ""]
    ]
    first = result["comparisons"][0]
    lines.append([first["a"], number(first["accuracy_a"]), number(first["roc_auc_a"])])
    for pair in result["comparisons"]:
        found = pair["accuracy_difference_ci95"] or (None, None)
        lines.append(
            [
                pair["b"], number(pair["accuracy_b"]), number(pair["roc_auc_b"]),
                number(pair["accuracy_difference"]),
                f"{number(found[0])} to {number(found[1])}", told_p(pair["p_holm"]),
                "shown" if pair["shown"] else "not shown",
            ]
        )  # fmt: skip
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(7)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=False))
        .rstrip()
        for line in lines
    )  # fmt: skip
