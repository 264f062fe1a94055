"""What an audit found, as sentences for a person, the worst first."""

from collections.abc import Mapping, Sequence
from typing import Any

from vd.audit.leakage import VideoPair
from vd.data.ledger import is_excessive

_SIGNIFICANT, _STRONG = 0.05, 0.6  # p, and AUC, from which a shortcut is a finding
_CERTAIN = 0.01  # p from which a group of one class is a finding

Values = Mapping[str, Any]


def findings(
    values: Values, pairs: Sequence[VideoPair], max_loss_gap: float
) -> list[str]:
    """What a person should know, a sentence each, the worst first; last what was not tested.

    `values` is the content of audit.json without these sentences.
    """
    found = [
        *_between_parts(values, pairs),
        *_lost(values, max_loss_gap),
        *_labels_told(values),
        *_run(values),
        *_within_parts(values, pairs),
    ]
    usable = values["ledger"]["usable"]
    return [
        *(found or [f"nothing was found in {usable} usable clips"]),
        *_not_tested(values),
    ]


def _between_parts(values: Values, pairs: Sequence[VideoPair]) -> list[str]:
    """What stands under both labels, or on both sides of a split."""
    footage = [pair for pair in pairs if pair.same_footage]
    scenes = [pair for pair in pairs if not pair.same_footage and not pair.grouped]
    return [
        *_pairs(
            "of the same footage are under both labels",
            [pair for pair in footage if pair.both_labels],
            "correct one label, or remove both",
        ),
        *_pairs(
            "of the same footage lie in two splits",
            [pair for pair in footage if pair.across_splits],
            _together(values, anew=True),
        ),
        *(
            f"the group {row['group']!r} is cut by the splits {row['clips']}: what is "
            "learnt of a place is tested there"
            for row in values["groups_cut"]
        ),
        *_pairs(
            "show the same scene in two splits",
            [pair for pair in scenes if pair.across_splits],
            _together(values, anew=True),
        ),
    ]


def _within_parts(values: Values, pairs: Sequence[VideoPair]) -> list[str]:
    """Pairs that no split divides."""
    inside = [pair for pair in pairs if not pair.across_splits and not pair.both_labels]
    return [
        *_pairs(
            "of the same footage are within one split or unsplit",
            [pair for pair in inside if pair.same_footage],
            "what is in both counts twice",
        ),
        *_pairs(
            "show the same scene and no group says so",
            [pair for pair in inside if not pair.same_footage and not pair.grouped],
            _together(values),
        ),
    ]


def _pairs(what: str, chosen: Sequence[VideoPair], remedy: str) -> list[str]:
    """A sentence that counts the pairs, names the first and says what to do; or none."""
    if not chosen:
        return []
    names = chosen[0].first.name, chosen[0].second.name
    return [f"{len(chosen)} pairs {what} ({names[0]!r} and {names[1]!r}): {remedy}"]


def _together(values: Values, anew: bool = False) -> str:
    """How pairs are kept in one split; `anew`: when kept splits divide them."""
    resplit = " --resplit" if anew and not values["own_splits"] else ""
    merge = f"vd split --merge-duplicates{resplit} keeps them together"
    if values["own_splits"]:
        return (
            "remove one of each, or drop the data set's own split folders or column, then "
            + merge
        )
    return merge


def _lost(values: Values, max_loss_gap: float) -> list[str]:
    """A gap between the classes' losses, and files that are not used."""
    ledger = values["ledger"]
    gap, said = ledger["loss_gap"], []
    if is_excessive(gap, max_loss_gap):
        said.append(
            f"{100 * gap['lost_violent']:.0f} % of violent and "
            f"{100 * gap['lost_nonviolent']:.0f} % of non-violent files are lost"
        )
    lost = ledger["found"] - ledger["usable"]
    if lost:
        said.append(
            f"{lost} of {ledger['found']} files are not usable: ledger.csv has the reasons"
        )
    return said


def _labels_told(values: Values) -> list[str]:
    """Groups of one class, and classifiers without sight of the action."""
    groups = [
        f"all {row['clips']} clips of the group {row['group']!r} are {row['label']}: its "
        "place tells the label"
        for row in values["one_class_groups"]
        if row["p"] < _CERTAIN
    ]
    words = {
        "metadata": "size, rate, length, codec, bytes, brightness and bars alone tell",
        "frame": "a single frame tells",
        "borders": "the borders of a single frame tell",
    }
    tested = {name: row for name, row in values["shortcuts"].items() if row}
    return groups + [
        f"{words[name]} the label with AUC {row['auc']:.3f} (labels permuted: below "
        f"{row['chance_95']:.3f}, p = {row['p']:.2f})"
        for name, row in tested.items()
        if row["p"] <= _SIGNIFICANT and row["auc"] >= _STRONG
    ]


def _run(values: Values) -> list[str]:
    """What a run's accuracy is without leaked clips, and whether its labels still stand."""
    if not values["run"]:
        return []
    rows, said = values["run"]["test"], []
    last = rows["without_shared_group"]
    said.append(
        f"the run's test accuracy is {_percent(rows['all'])}, and {_percent(last)} without "
        f"{last['left_out']} leaked clips"
    )
    changed = values["relabelled"]
    if changed:
        said.append(
            f"{len(changed)} clips had another label when the run was trained "
            f"({changed[0]!r} for one): its figures are of the former labels"
        )
    return said


def _not_tested(values: Values) -> list[str]:
    """What the audit could not look at: silence about it would pass for a clean bill."""
    said = []
    if not any(row["split"] for row in values["ledger"]["per_split_and_class"]):
        said.append("no splits are known, so leakage between them was not tested")
    if values["groups"] is None:
        said.append(
            "no source groups are known: clips of one recording may be in train and test; "
            "a column `group` or --group-from names them"
        )
    if not all(values["shortcuts"].values()):
        said.append(
            "whether metadata, a frame or its borders tell the label was not tested: a "
            "class has fewer than two clips or groups"
        )
    return said


def _percent(row: Values) -> str:
    accuracy = row["accuracy"]
    clips = f"({row['clips']} clips)"
    return (
        f"undefined {clips}" if accuracy is None else f"{100 * accuracy:.1f} % {clips}"
    )
