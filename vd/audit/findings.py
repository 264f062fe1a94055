"""The findings of an audit, as sentences for a person, the worst first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vd.audit.leakage import VideoPair
from vd.data.ledger import is_excessive
from vd.report.page import percent

_SIGNIFICANT, _STRONG = 0.05, 0.6  # p, and AUC, from which a shortcut is a finding
_CERTAIN = 0.01  # p from which a group of one class is a finding
_INPUTS = {  # of the shortcut tests
    "metadata": "size, rate, length, codec, bytes, brightness and bars alone predict",
    "frame": "a single frame predicts",
    "borders": "the borders of a single frame predict",
}

Values = Mapping[str, Any]


def findings(
    values: Values, pairs: Sequence[VideoPair], max_loss_gap: float
) -> list[str]:
    """A sentence for each finding, the worst first; at the end what was not tested.

    `values` is the content of audit.json without these sentences.
    """
    sentences = [
        *_across(values, pairs),
        *_lost(values["ledger"], max_loss_gap),
        *_shortcuts(values),
        *_run(values),
        *_inside(values, pairs),
    ]
    usable = values["ledger"]["usable"]
    return [
        *(sentences or [f"nothing was found in {usable} usable clips"]),
        *_not_tested(values),
    ]


def _across(values: Values, pairs: Sequence[VideoPair]) -> Iterator[str]:
    """Footage under both labels; footage, groups and scenes in two splits."""
    remedy = _keep_together(values, resplit=True)
    yield from _count(
        [pair for pair in pairs if pair.both_labels],
        "of the same footage are under both labels",
        "correct one label, or remove both",
    )
    yield from _count(
        [pair for pair in pairs if pair.same_footage and pair.across_splits],
        "of the same footage lie in two splits",
        remedy,
    )
    for row in values["groups_cut"]:
        yield (
            f"the group {row['group']!r} is cut by the splits {row['clips']}: the test part "
            "shows places that were trained on"
        )
    yield from _count(
        [p for p in pairs if p.across_splits and not p.same_footage and not p.grouped],
        "show the same scene in two splits",
        remedy,
    )


def _inside(values: Values, pairs: Sequence[VideoPair]) -> Iterator[str]:
    """Pairs that no split divides."""
    inside = [pair for pair in pairs if not pair.across_splits and not pair.both_labels]
    yield from _count(
        [pair for pair in inside if pair.same_footage],
        "of the same footage are within one split or unsplit",
        "what is in both counts twice",
    )
    yield from _count(
        [pair for pair in inside if not pair.same_footage and not pair.grouped],
        "show the same scene and are in no common group",
        _keep_together(values),
    )


def _count(chosen: Sequence[VideoPair], what: str, remedy: str) -> Iterator[str]:
    """A sentence that counts the pairs and names the first; none without pairs."""
    if chosen:
        first, second = chosen[0].first.name, chosen[0].second.name
        yield f"{len(chosen)} pairs {what} ({first!r} and {second!r}): {remedy}"


def _keep_together(values: Values, resplit: bool = False) -> str:
    """How to keep pairs in one split; `resplit`: kept splits divide them."""
    if values["own_splits"]:
        return (
            "remove one of each, or drop the data set's own split folders or column, then "
            "vd split --merge-duplicates keeps them together"
        )
    flag = " --resplit" if resplit else ""
    return f"vd split --merge-duplicates{flag} keeps them together"


def _lost(ledger: Values, max_loss_gap: float) -> Iterator[str]:
    """A gap between the classes' losses, and files that are not used."""
    gap, lost = ledger["loss_gap"], ledger["found"] - ledger["usable"]
    if is_excessive(gap, max_loss_gap):
        yield (
            f"{100 * gap['lost_violent']:.0f} % of violent and "
            f"{100 * gap['lost_nonviolent']:.0f} % of non-violent files are lost"
        )
    if lost:
        yield (
            f"{lost} of {ledger['found']} files are not usable: ledger.csv has the reasons"
        )


def _shortcuts(values: Values) -> Iterator[str]:
    """Groups of one class, and classifiers that see no action."""
    for row in values["one_class_groups"]:
        if row["p"] < _CERTAIN:
            yield (
                f"all {row['clips']} clips of the group {row['group']!r} are "
                f"{row['label']}: the place gives the label away"
            )
    for name, row in values["shortcuts"].items():
        if row and row["p"] <= _SIGNIFICANT and row["auc"] >= _STRONG:
            yield (
                f"{_INPUTS[name]} the label with AUC {row['auc']:.3f} (labels permuted: "
                f"below {row['chance_95']:.3f}, p = {row['p']:.2f})"
            )


def _run(values: Values) -> Iterator[str]:
    """A run's accuracy without leaked clips, and labels that have changed since."""
    if not values["run"]:
        return
    rows, changed = values["run"]["test"], values["relabelled"]
    last = rows["without_shared_group"]
    yield (
        f"the run's test accuracy is {percent(rows['all']['accuracy'])} "
        f"({rows['all']['clips']} clips), and {percent(last['accuracy'])} "
        f"({last['clips']} clips) without {last['left_out']} leaked clips"
    )
    if changed:
        yield (
            f"{len(changed)} clips had another label when the run was trained (for example "
            f"{changed[0]!r}): its figures are of the former labels"
        )


def _not_tested(values: Values) -> Iterator[str]:
    """What the audit could not test: silence about it would look like a clean result."""
    if not any(row["split"] for row in values["ledger"]["per_split_and_class"]):
        yield "no splits are known, so leakage between them was not tested"
    if values["groups"] is None:
        yield (
            "no source groups are known: clips of one recording may be in train and test; "
            "name them with a column `group` or with --group-from"
        )
    if not all(values["shortcuts"].values()):
        yield (
            "whether metadata, a frame or its borders predict the label was not tested: a "
            "class has fewer than two clips or groups"
        )
