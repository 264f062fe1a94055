"""audit.html: one self-contained page."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from vd.audit.leakage import VideoPair
from vd.report.page import render

_MOST_PAIRS = 60  # with pictures; audit.json has all

_WORDS = {"copy": "same file", "duplicate": "same footage", "same-scene": "same scene"}


def shown_pairs(pairs: Sequence[VideoPair]) -> list[VideoPair]:
    """The pairs that the page shows, of those that are the worst first."""
    return [p for p in pairs if not _as_expected(p)][:_MOST_PAIRS]


def audit_page(
    values: Mapping[str, Any],
    pairs: Sequence[VideoPair],
    pictures: Mapping[str, bytes],
) -> str:
    """The page; `values` is the content of audit.json, `pairs` the worst first.

    `pictures` are JPEGs of the shown pairs' videos by content hash.
    """
    shown, grouped = shown_pairs(pairs), sum(map(_as_expected, pairs))
    return render(
        "vd.audit",
        "audit.html.j2",
        {
            "values": values,
            "pairs": [_shown(pair, pictures) for pair in shown],
            "hidden": len(pairs) - len(shown) - grouped,
            "grouped": grouped,
        },
    )


def _as_expected(pair: VideoPair) -> bool:
    """One scene within one group: the group says so already."""
    return pair.kind == "same-scene" and pair.grouped


def _shown(pair: VideoPair, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """What the page says of a pair."""
    row = pair.row()
    return {
        "title": _WORDS[pair.kind] + (", mirrored" if pair.mirrored else ""),
        "similarity": f"{pair.similarity:.3f}",
        "shift": f"{pair.shift:+.2f} s" if pair.shift else "",
        "grave": pair.both_labels or pair.across_splits,
        "clips": [
            {
                "path": video.name,
                "label": row["labels"][i],
                "split": video.split or "no split",
                "group": video.group,
                "picture": base64.b64encode(pictures[video.id]).decode(),
            }
            for i, video in enumerate((pair.first, pair.second))
        ],
    }
