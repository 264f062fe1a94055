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
from vd.audit.leakage import VideoPair, groups_cut, video_pairs, without_leaks
from vd.audit.page import audit_page
from vd.config import Config
from vd.features.engines import find_backbone, make_engine
from vd.progress import say
from vd.training.run_folder import videos_of
from vd.videos.duplicates import Pair, find_pairs
from vd.videos.fingerprints import Fingerprint, fingerprint_videos
from vd.videos.manifest import CLASSES, Video, identify, read_manifest
from vd.videos.scan import Ledger, report
from vd.videos.splits import kept_splits, merge_groups

_MOST_CLIPS = 2000  # of a shortcut test: a larger set is sampled
_SIGNIFICANT, _STRONG = 0.05, 0.6  # p, and AUC, from which a shortcut is a finding


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

    Splits are the data set's own, else those kept in the splits file, else those of
    `run_dir`, whose test predictions are then counted again without leaked clips.
    """
    audited = _audit(config, run_dir)
    report_dir.mkdir(parents=True, exist_ok=True)
    write_json(report_dir / "audit.json", audited.values)
    page = audit_page(audited.values, audited.pairs, audited.fingerprints)
    write_text(report_dir / "audit.html", page)
    for finding in audited.values["findings"]:
        say(f"- {finding}")
    say(f"written: {report_dir / 'audit.json'}, {report_dir / 'audit.html'}")
    return audited.values


def _audit(config: Config, run_dir: Path | None) -> Audited:
    manifest = read_manifest(config.data)
    videos = identify(manifest.videos, config.data.cache_dir / "hashes.csv")
    videos = _with_known_splits(videos, config, run_dir)
    ledger, fingerprints = fingerprint_videos(videos, config.data, config.decode)
    report(ledger, manifest.ignored)
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
        rows = {v.id: v for v in videos_of(run_dir, config.data.dataset_path)}
        absent = Video(Path(), "", 0)
        return [
            dataclasses.replace(v, split=rows.get(v.id, absent).split) for v in videos
        ]
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
    names = [video.group or video.id for video in chosen]
    groups_N = np.unique(names, return_inverse=True)[1]
    made = [fingerprints[video.id] for video in chosen]
    outcomes = [entries[video.id].outcome for video in chosen]
    backbone = find_backbone(config.backbone)
    engine = make_engine(backbone, config.backbone.engine)
    paths = [video.path for video in chosen]
    tests = {
        "metadata": (
            shortcuts.metadata_model(),
            shortcuts.metadata(paths, outcomes, made),
        ),
        "frame": (
            shortcuts.picture_model(),
            shortcuts.picture_features(made, engine, backbone.size, "frame"),
        ),
        "borders": (
            shortcuts.picture_model(),
            shortcuts.picture_features(made, engine, backbone.size, "borders"),
        ),
    }
    results = {
        name: shortcuts.shortcut(model, features_NxD, labels_N, groups_N)
        for name, (model, features_NxD) in tests.items()
    }
    return {
        name: asdict(result) if result else None for name, result in results.items()
    }


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
