"""What an audit found, as sentences for a person, the worst first."""

from collections.abc import Mapping, Sequence
from typing import Any

from vd.audit.leakage import VideoPair

_SIGNIFICANT, _STRONG = 0.05, 0.6  # p, and AUC, from which a shortcut is a finding


def findings(values: Mapping[str, Any], pairs: Sequence[VideoPair]) -> list[str]:
    """What a person should know, a sentence each, the worst first."""
    said = []

    def pairs_found(what: str, chosen: Sequence[VideoPair], remedy: str) -> None:
        if chosen:
            names = chosen[0].first.name, chosen[0].second.name
            said.append(
                f"{len(chosen)} pairs {what} ({names[0]!r} and {names[1]!r}): {remedy}"
            )

    footage = [pair for pair in pairs if pair.same_footage]
    scenes = [pair for pair in pairs if not pair.same_footage and not pair.grouped]
    pairs_found(
        "of the same footage are under both labels",
        [pair for pair in footage if pair.both_labels],
        "correct one label, or remove both",
    )
    pairs_found(
        "of the same footage lie in two splits",
        [pair for pair in footage if pair.across_splits],
        "vd split --merge-duplicates keeps them together",
    )
    for row in values["groups_cut"]:
        said.append(
            f"the group {row['group']!r} is cut by the splits {row['clips']}: what is learnt "
            "of a place is tested there"
        )
    pairs_found(
        "show the same scene in two splits",
        [pair for pair in scenes if pair.across_splits],
        "vd split --merge-duplicates keeps them together",
    )
    gap = values["ledger"]["loss_gap"]
    if gap["gap"] > 0.05 and gap["p"] < 0.01:
        said.append(
            f"{100 * gap['lost_violent']:.0f} % of violent and "
            f"{100 * gap['lost_nonviolent']:.0f} % of non-violent files are lost"
        )
    certain = [row for row in values["one_class_groups"] if row["p"] < 0.01]
    for row in certain:
        said.append(
            f"all {row['clips']} clips of the group {row['group']!r} are {row['label']}: "
            "its place tells the label"
        )
    said += [
        sentence
        for name, result in values["shortcuts"].items()
        if (sentence := _shortcut_finding(name, result))
    ]
    run = values["run"]
    if run:
        rows = run["test"]
        last = rows["without_shared_group"]
        said.append(
            f"the run's test accuracy is {_percent(rows['all'])}, and "
            f"{_percent(last)} without {last['left_out']} leaked clips"
        )
    pairs_found(
        "of the same footage are within one split or unsplit",
        [p for p in footage if not p.both_labels and not p.across_splits],
        "what is in both counts twice",
    )
    pairs_found(
        "show the same scene and no group says so",
        [p for p in scenes if not p.across_splits],
        "vd split --merge-duplicates makes groups of them",
    )
    return said or ["nothing was found"]


def _shortcut_finding(name: str, result: Mapping[str, Any] | None) -> str | None:
    """A sentence when a classifier without sight of the action is better than chance."""
    if result is None or result["p"] > _SIGNIFICANT or result["auc"] < _STRONG:
        return None
    what = {
        "metadata": "size, rate, length, codec, bytes, brightness and bars alone tell the label",
        "frame": "a single frame tells the label",
        "borders": "the borders of a single frame tell the label",
    }[name]
    return (
        f"{what} with AUC {result['auc']:.3f} (labels permuted: below "
        f"{result['chance_95']:.3f}, p = {result['p']:.2f})"
    )


def _percent(row: Mapping[str, Any]) -> str:
    accuracy = row["accuracy"]
    clips = f"({row['clips']} clips)"
    return (
        f"undefined {clips}" if accuracy is None else f"{100 * accuracy:.1f} % {clips}"
    )
