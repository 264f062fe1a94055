"""`vd audit`: copies, leakage between splits and shortcuts of a data set; trains nothing.

1. The ledger, and a fingerprint of every usable video.
2. Pairs of the same footage or scene; what classes and splits they join.
3. Classifiers that see no action; groups of one class.
4. Findings as sentences, the worst first; audit.json and audit.html.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vd.audit import shortcuts
from vd.audit.findings import findings
from vd.audit.fingerprints import Fingerprint, fingerprint_videos, read_pictures
from vd.audit.leakage import groups_cut, read_tested, video_pairs, without_leaks
from vd.audit.near_duplicates import Pair, find_pairs
from vd.audit.page import audit_page, shown_pairs
from vd.config import Config
from vd.console import say
from vd.data.catalog import identify
from vd.data.groups import merge_groups
from vd.data.ledger import Ledger, report
from vd.data.manifest import CLASSES, Video, read_manifest
from vd.data.splits import kept_splits
from vd.errors import VdError
from vd.features.backbone import Backbone, find_backbone
from vd.features.engines import make_engine
from vd.files import make_folder, write_csv, write_json, write_text
from vd.training.run_folder import videos_of

_MOST_CLIPS = 2000  # of a shortcut test: a larger set is sampled


def audit(
    config: Config, report_dir: Path, run_dir: Path | None = None
) -> dict[str, Any]:
    """Audit a data set, write audit.json and audit.html; returns the former's content.

    Splits are those of `run_dir`, whose test predictions are then counted again without
    leaked clips; without a run the data set's own, else those kept in the splits file.
    Raises `VdError` when the run was trained on files that the data set lacks, or its test
    predictions are not whole.
    """
    backbone = find_backbone(config.backbone)
    manifest = read_manifest(config.data)
    make_folder(report_dir, "--report-dir")
    given = identify(manifest.videos, config.data.cache_dir)
    own_splits = any(video.split for video in given)
    relabelled: list[str] = []
    tested = None
    if run_dir is not None:
        videos, relabelled = _as_in_run(given, run_dir, config.data.dataset_path)
        tested = read_tested(run_dir, videos)
    else:
        videos = given if own_splits else kept_splits(given, config)
    ledger, fingerprints = fingerprint_videos(videos, config.data, config.decode)
    write_csv(report_dir / "ledger.csv", ledger.rows())
    report(ledger, manifest.ignored, report_dir / "ledger.csv")
    usable = ledger.usable()
    found = find_pairs(fingerprints)
    pairs = video_pairs(usable, found)
    values: dict[str, Any] = {
        "dataset": str(config.data.dataset_path),
        "own_splits": own_splits,
        "ledger": ledger.summary(manifest.ignored),
        "pairs": [pair.row() for pair in pairs],
        "groups": len({v.group for v in usable if v.group}) or None,
        "groups_cut": groups_cut(usable),
        "relabelled": relabelled,
        "run": tested and without_leaks(tested, usable, pairs),
        "one_class_groups": _one_class_groups(usable),
        "shortcuts": _shortcuts(ledger, fingerprints, found, backbone, config),
    }
    values = {"findings": findings(values, pairs, config.data.max_loss_gap), **values}
    write_json(report_dir / "audit.json", values)
    ids = {v.id for pair in shown_pairs(pairs) for v in (pair.first, pair.second)}
    page = audit_page(values, pairs, read_pictures(config.data.cache_dir, ids))
    write_text(report_dir / "audit.html", page)
    for finding in values["findings"]:
        say(f"- {finding}")
    say(f"written: {report_dir / 'audit.json'}, {report_dir / 'audit.html'}")
    return values


def _as_in_run(
    videos: Sequence[Video], run_dir: Path, dataset_path: Path
) -> tuple[list[Video], list[str]]:
    """The videos with a run's splits, and the names whose label it had otherwise."""
    # by file, for copies of one clip may be in two splits
    by_file = {(v.name, v.id): v for v in videos_of(run_dir, dataset_path)}
    made, relabelled = [], []
    for video in videos:
        before = by_file.pop((video.name, video.id), None)
        if before is not None and before.label != video.label:
            relabelled.append(video.name)
        made.append(dataclasses.replace(video, split=before.split if before else ""))
    if by_file:
        name = min(name for name, _ in by_file)
        raise VdError(
            f"--checkpoint-dir {run_dir} was trained on {len(by_file)} files that "
            f"--dataset-path {dataset_path} lacks or has with other content, {name!r} for "
            "one; name the data set that it was trained on."
        )
    return made, relabelled


def _one_class_groups(videos: Sequence[Video]) -> list[dict[str, Any]]:
    """Given groups whose clips are all of one class."""
    labels: dict[str, list[int]] = defaultdict(list)
    for video in videos:
        if video.group:
            labels[video.group].append(video.label)
    share = sum(video.label for video in videos) / max(len(videos), 1)
    rows = shortcuts.one_class_groups(labels, share)
    return [{**row, "label": CLASSES[row["label"]]} for row in rows]


def _shortcuts(
    ledger: Ledger,
    fingerprints: Mapping[str, Fingerprint],
    found: Sequence[Pair],
    backbone: Backbone,
    config: Config,
) -> dict[str, dict[str, Any] | None]:
    """AUC from metadata, from a middle frame, and from its borders, over one copy of a clip."""
    entries = {e.video.id: e for e in ledger.entries if e.video.id in fingerprints}
    merged = merge_groups(
        [entry.video for entry in entries.values()],
        [(pair.first, pair.second) for pair in found],
    )
    order = np.random.Generator(np.random.Philox(0)).permutation(len(merged))
    chosen = [merged[i] for i in sorted(order[:_MOST_CLIPS])]
    labels_N = np.array([video.label for video in chosen])
    groups = [video.group or video.id for video in chosen]
    groups_N = np.unique(groups, return_inverse=True)[1]
    names = ("metadata", "frame", "borders")
    if not shortcuts.is_testable(labels_N, groups_N):
        return dict.fromkeys(names)
    engine = make_engine(backbone, config.backbone.engine)
    kept = read_pictures(config.data.cache_dir, [video.id for video in chosen])
    pictures = [kept[video.id] for video in chosen]
    features = {
        "metadata": shortcuts.metadata(
            [video.size for video in chosen],
            [entries[video.id].outcome for video in chosen],
            [fingerprints[video.id] for video in chosen],
        ),
        "frame": shortcuts.picture_features(pictures, engine, backbone.size),
        "borders": shortcuts.picture_features(
            pictures, engine, backbone.size, borders=True
        ),
    }
    metadata, picture = shortcuts.metadata_model(), shortcuts.picture_model()
    return {
        name: asdict(
            shortcuts.shortcut(
                metadata if name == "metadata" else picture,
                features[name],
                labels_N,
                groups_N,
            )
        )
        for name in names
    }
