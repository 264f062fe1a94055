"""What an audit finds: pairs of files that show the same, and sentences for a person."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Literal

from vd.data.ledger import is_excessive
from vd.data.manifest import CLASSES, Video
from vd.data.near_duplicates import Pair

_SIGNIFICANT, _STRONG = 0.05, 0.6  # p, and AUC, from which a shortcut is a finding
_CERTAIN = 0.01  # p from which a group of one class is a finding
_INPUTS = {  # of the shortcut tests
    "metadata": "size, rate, length, codec, bytes, brightness and bars alone predict",
    "frame": "a single frame predicts",
    "borders": "the borders of a single frame predict",
}

Values = Mapping[str, Any]


@dataclass(frozen=True)
class VideoPair:
    """Two files that show the same; the second begins `shift` seconds into the first."""

    first: Video
    second: Video
    kind: Literal["copy", "duplicate", "same-scene"]  # copy: the same bytes
    similarity: float = 1.0
    mirrored: bool = False
    shift: float = 0.0

    @property
    def same_footage(self) -> bool:
        """Whether both show the same moments, not just the same place."""
        return self.kind != "same-scene"

    @property
    def both_labels(self) -> bool:
        """Whether the same footage has both labels: one of them is wrong."""
        return self.same_footage and self.first.label != self.second.label

    @property
    def across_splits(self) -> bool:
        """Whether the two are in different splits."""
        splits = {self.first.split, self.second.split}
        return len(splits) == 2 and "" not in splits

    @property
    def grouped(self) -> bool:
        """Whether both are in one group already."""
        return self.first.group != "" and self.first.group == self.second.group

    def row(self) -> dict[str, Any]:
        """The pair in JSON values."""
        both = self.first, self.second
        return {
            "kind": self.kind,
            "paths": [video.name for video in both],
            "labels": [CLASSES[video.label] for video in both],
            "splits": [video.split for video in both],
            "groups": [video.group for video in both],
            "similarity": round(self.similarity, 4),
            "mirrored": self.mirrored,
            "shift_seconds": self.shift,
        }


def video_pairs(videos: Iterable[Video], alike: Iterable[Pair]) -> list[VideoPair]:
    """Pairs of files with the same content, and of those whose contents are `alike`.

    The worst first: the same footage under both labels, then across splits, then footage
    before scene, then pairs that are in no common group.
    """
    by_id: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        if video.id:
            by_id[video.id].append(video)
    pairs = [
        VideoPair(first, second, "copy")
        for same in by_id.values()
        for first, second in combinations(same, 2)
    ]
    for pair in alike:
        for first, second in product(by_id[pair.first], by_id[pair.second]):
            pairs.append(VideoPair(first, second, *pair[2:]))
    return sorted(
        pairs,
        key=lambda pair: (
            not pair.both_labels, not pair.across_splits, not pair.same_footage, pair.grouped,
            -pair.similarity, pair.first.name, pair.second.name,
        ),
    )  # fmt: skip


def findings(
    values: Values, pairs: Sequence[VideoPair], max_loss_gap: float
) -> list[str]:
    """A sentence for each finding, the worst first; at the end what was not tested.

    `values` is the content of audit.json without these sentences.
    """
    footage = [pair for pair in pairs if pair.same_footage]
    scenes = [pair for pair in pairs if not pair.same_footage and not pair.grouped]
    together = "vd split --merge-duplicates --resplit keeps them together"
    if values["own_splits"]:
        together = (
            "remove one of each, or the split folders or column of the data set, then vd "
            "split --merge-duplicates keeps them together"
        )
    sentences = [
        *_pairs(
            [pair for pair in footage if pair.both_labels],
            "of the same footage are under both labels",
            "correct one label, or remove both",
        ),
        *_pairs(
            [pair for pair in footage if pair.across_splits],
            "of the same footage lie in two splits",
            together,
        ),
        *(
            f"the group {row['group']!r} is cut by the splits {row['clips']}: the test part "
            "shows places that were trained on"
            for row in values["groups_cut"]
        ),
        *_pairs(
            [pair for pair in scenes if pair.across_splits],
            "show the same scene in two splits",
            together,
        ),
        *_lost(values["ledger"], max_loss_gap),
        *_shortcuts(values),
        *_pairs(
            [p for p in footage if not p.across_splits and not p.both_labels],
            "of the same footage are within one split or unsplit",
            "what is in both counts twice",
        ),
        *_pairs(
            [pair for pair in scenes if not pair.across_splits],
            "show the same scene and are in no common group",
            "give them one, or vd split --merge-duplicates does",
        ),
    ]
    if not sentences:
        sentences = [f"nothing was found in {values['ledger']['usable']} usable clips"]
    return [*sentences, *_not_tested(values)]


def _pairs(pairs: Sequence[VideoPair], what: str, remedy: str) -> Iterator[str]:
    """A sentence that counts the pairs and names the first; none without pairs."""
    if pairs:
        first, second = pairs[0].first.name, pairs[0].second.name
        yield f"{len(pairs)} pairs {what} ({first!r} and {second!r}): {remedy}"


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
