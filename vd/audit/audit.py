"""`vd audit`: copies, leakage between splits and shortcuts of a data set; trains nothing.

1. The ledger, and a fingerprint of every usable video.
2. Pairs of the same footage or scene; which classes and splits they join.
3. Classifiers that see no action; groups of one class.
4. Findings as sentences, the worst first; audit.json and audit.html.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vd.audit import shortcuts
from vd.audit.findings import VideoPair, findings, video_pairs
from vd.config import Config
from vd.console import say
from vd.data.catalog import identify
from vd.data.fingerprints import Fingerprint, fingerprint_videos, read_pictures
from vd.data.ledger import Ledger, report
from vd.data.manifest import CLASSES, read_manifest
from vd.data.near_duplicates import Pair, find_pairs
from vd.data.splits import groups_cut, kept_splits, merge_groups
from vd.features.backbone import Backbone, find_backbone
from vd.features.engines import make_engine
from vd.files import write_csv, write_json, write_text

_MOST_CLIPS = 2000  # of a shortcut test: a larger set is sampled
_MOST_PAIRS = 60  # on the page; audit.json has all


def audit(config: Config, report_dir: Path) -> dict[str, Any]:
    """Audit a data set, write audit.json and audit.html; returns the former's content."""
    backbone = find_backbone(config.backbone)
    manifest = read_manifest(config.data, config.decode)
    report_dir.mkdir(parents=True, exist_ok=True)  # or fail before the work
    given = identify(manifest.videos, config.data.cache_dir)
    own_splits = any(video.split for video in given)
    videos = given if own_splits else kept_splits(given, config)
    ledger, fingerprints = fingerprint_videos(videos, config.data, config.decode)
    write_csv(report_dir / "ledger.csv", ledger.rows())
    report(ledger, manifest.ignored, report_dir / "ledger.csv")
    usable = ledger.usable()
    alike = find_pairs(fingerprints)
    pairs = video_pairs(usable, alike)
    values: dict[str, Any] = {
        "dataset": str(config.data.dataset_path),
        "own_splits": own_splits,
        "ledger": ledger.summary(manifest.ignored),
        "pairs": [pair.row() for pair in pairs],
        "groups": len({v.group for v in usable if v.group}) or None,
        "groups_cut": groups_cut(usable),
        "one_class_groups": shortcuts.one_class_groups(usable),
        "shortcuts": _shortcuts(ledger, fingerprints, alike, backbone, config),
    }
    values = {"findings": findings(values, pairs, config.data.max_loss_gap), **values}
    write_json(report_dir / "audit.json", values)
    write_text(report_dir / "audit.html", _page(values, pairs, config.data.cache_dir))
    for finding in values["findings"]:
        say(f"- {finding}")
    say(f"written: {report_dir / 'audit.json'}, {report_dir / 'audit.html'}")
    return values


def _shortcuts(
    ledger: Ledger,
    fingerprints: Mapping[str, Fingerprint],
    alike: Sequence[Pair],
    backbone: Backbone,
    config: Config,
) -> dict[str, dict[str, Any] | None]:
    """AUC from metadata, from a middle frame, and from its borders, over one copy of a clip."""
    entries = {e.video.id: e for e in ledger.entries if e.video.id in fingerprints}
    copies = [(pair.first, pair.second) for pair in alike]
    merged = merge_groups([entry.video for entry in entries.values()], copies)
    order = np.random.Generator(np.random.Philox(0)).permutation(len(merged))
    chosen = [merged[i] for i in sorted(order[:_MOST_CLIPS])]
    labels_N = np.array([video.label for video in chosen])
    groups = [video.group or video.id for video in chosen]
    groups_N = np.unique(groups, return_inverse=True)[1]
    if shortcuts.fewest_groups(labels_N, groups_N) < 2:
        return dict.fromkeys(("metadata", "frame", "borders"))
    engine = make_engine(backbone, config.backbone.engine)
    kept = read_pictures(config.data.cache_dir, [video.id for video in chosen])
    pictures = [kept[video.id] for video in chosen]
    outcomes = [entries[video.id].outcome for video in chosen]
    prints = [fingerprints[video.id] for video in chosen]
    frame, borders = shortcuts.picture_features(pictures, engine, backbone.size)
    metadata = shortcuts.metadata(chosen, outcomes, prints)
    test = partial(shortcuts.shortcut, labels_N=labels_N, groups_N=groups_N)
    return {
        "metadata": test(shortcuts.METADATA_MODEL, metadata),
        "frame": test(shortcuts.PICTURE_MODEL, frame),
        "borders": test(shortcuts.PICTURE_MODEL, borders),
    }


def _page(values: Mapping[str, Any], pairs: Sequence[VideoPair], cache: Path) -> str:
    """audit.html, with a picture of each video of the worst pairs."""
    from vd.report.images import picture
    from vd.report.report import render

    # one scene within one group is what groups are for
    shown = [pair for pair in pairs if pair.same_footage or not pair.grouped]
    shown = shown[:_MOST_PAIRS]
    ids = {video.id for pair in shown for video in (pair.first, pair.second)}
    pictures = {
        video_id: picture(content, "jpeg", "middle frame")
        for video_id, content in read_pictures(cache, ids).items()
    }
    return render(
        "vd.audit",
        "audit.html.j2",
        {
            "title": f"Audit of {values['dataset']}",
            "values": values,
            "classes": CLASSES,
            "pairs": shown,
            "pictures": pictures,
        },
    )
