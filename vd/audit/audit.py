"""`vd audit`: copies, leakage between splits and shortcuts of a data set; trains nothing.

1. The ledger, and a fingerprint of every usable video.
2. Pairs of the same footage or scene; what classes and splits they join.
3. Classifiers that see no action; groups of one class.
4. Findings as sentences, the worst first; audit.json and audit.html.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vd.atomic import write_json, write_text
from vd.audit import shortcuts
from vd.audit.findings import findings
from vd.audit.leakage import VideoPair, groups_cut, video_pairs, without_leaks
from vd.audit.page import audit_page
from vd.config import Config
from vd.errors import VdError
from vd.features.engines import find_backbone, make_engine
from vd.progress import say
from vd.tables import write_csv
from vd.training.run_folder import videos_of
from vd.videos.duplicates import Pair, find_pairs
from vd.videos.fingerprints import Fingerprint, fingerprint_videos
from vd.videos.manifest import CLASSES, Video, identify, read_manifest
from vd.videos.scan import Ledger, report
from vd.videos.splits import kept_splits, merge_groups

_MOST_CLIPS = 2000  # of a shortcut test: a larger set is sampled


@dataclass(frozen=True)
class Audited:
    """What was found: the content of audit.json, and what the page shows besides."""

    values: dict[str, Any]
    pairs: list[VideoPair]
    fingerprints: dict[str, Fingerprint]


def audit(
    config: Config, report_dir: Path, run_dir: Path | None = None
) -> dict[str, Any]:
    """Audit a data set, write audit.json and audit.html; returns the former's content.

    Splits are those of `run_dir`, whose test predictions are then counted again without
    leaked clips; without a run the data set's own, else those kept in the splits file.
    Raises `VdError` when the run was trained on files that the data set lacks.
    """
    audited = _audit(config, report_dir, run_dir)
    write_json(report_dir / "audit.json", audited.values)
    page = audit_page(audited.values, audited.pairs, audited.fingerprints)
    write_text(report_dir / "audit.html", page)
    for finding in audited.values["findings"]:
        say(f"- {finding}")
    say(f"written: {report_dir / 'audit.json'}, {report_dir / 'audit.html'}")
    return audited.values


def _audit(config: Config, report_dir: Path, run_dir: Path | None) -> Audited:
    manifest = read_manifest(config.data)
    videos = identify(manifest.videos, config.data.cache_dir / "hashes.csv")
    videos = _with_known_splits(videos, config, run_dir)
    ledger, fingerprints = fingerprint_videos(videos, config.data, config.decode)
    write_csv(report_dir / "ledger.csv", ledger.rows())
    report(ledger, manifest.ignored, report_dir / "ledger.csv")
    usable = ledger.usable()
    found = find_pairs({key: made.small_Fx16x16 for key, made in fingerprints.items()})
    pairs = video_pairs(usable, found)
    values: dict[str, Any] = {
        "dataset": str(config.data.dataset_path),
        "ledger": ledger.summary(manifest.ignored),
        "pairs": [pair.row() for pair in pairs],
        "groups_cut": groups_cut(usable),
        "run": without_leaks(run_dir, usable, pairs) if run_dir else None,
        "one_class_groups": _one_class_groups(usable),
        "shortcuts": _shortcuts(ledger, fingerprints, found, config),
    }
    values = {"findings": findings(values, pairs), **values}
    return Audited(values, pairs, fingerprints)


def _with_known_splits(
    videos: Sequence[Video], config: Config, run_dir: Path | None
) -> list[Video]:
    """The run's splits, else the data set's own, else those kept; assigns none."""
    if run_dir is not None:
        rows = videos_of(run_dir, config.data.dataset_path)
        by_file = {(v.name, v.id): v.split for v in rows}  # copies may be in two splits
        made = [
            dataclasses.replace(v, split=by_file.pop((v.name, v.id), ""))
            for v in videos
        ]
        if by_file:
            name = min(name for name, _ in by_file)
            raise VdError(
                f"--checkpoint-dir {run_dir} was trained on {len(by_file)} files that "
                f"--dataset-path {config.data.dataset_path} lacks or has with other "
                f"content, {name!r} for one; name the data set that it was trained on."
            )
        return made
    if any(video.split for video in videos):
        return list(videos)
    return kept_splits(videos, config)


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
    made = [fingerprints[video.id] for video in chosen]
    outcomes = [entries[video.id].outcome for video in chosen]
    backbone = find_backbone(config.backbone)
    engine = make_engine(backbone, config.backbone.engine)
    features = {
        "metadata": shortcuts.metadata([v.path for v in chosen], outcomes, made),
        "frame": shortcuts.picture_features(made, engine, backbone.size),
        "borders": shortcuts.picture_features(
            made, engine, backbone.size, borders=True
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
