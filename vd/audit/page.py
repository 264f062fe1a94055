"""audit.html: one self-contained page; every name from a file is escaped."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from vd.audit.leakage import VideoPair
from vd.videos.fingerprints import Fingerprint

_MOST_PAIRS = 60  # with pictures; audit.json has all

_WORDS = {"copy": "same file", "duplicate": "same footage", "same-scene": "same scene"}


def audit_page(
    values: Mapping[str, Any],
    pairs: Sequence[VideoPair],
    fingerprints: Mapping[str, Fingerprint],
) -> str:
    """The page; `values` is the content of audit.json, `pairs` the worst first."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vd.audit"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [pair for pair in pairs if not (pair.kind == "same-scene" and pair.grouped)]
    page = environment.get_template("audit.html.j2").render(
        values=values,
        pairs=[_shown(pair, fingerprints) for pair in shown[:_MOST_PAIRS]],
        hidden=max(0, len(shown) - _MOST_PAIRS),
        grouped=len(pairs) - len(shown),
    )
    # names that are no UTF-8 stay readable
    return page.encode("utf-8", "backslashreplace").decode()


def _shown(pair: VideoPair, fingerprints: Mapping[str, Fingerprint]) -> dict[str, Any]:
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
                "picture": base64.b64encode(fingerprints[video.id].picture).decode(),
            }
            for i, video in enumerate((pair.first, pair.second))
        ],
    }
