"""`vd audit`: copies, leakage between splits and shortcuts of a data set; trains nothing.

1. The ledger, and a fingerprint of every usable video.
2. Pairs of the same footage or scene; which classes and splits they join.
3. Classifiers that see no action; groups of one class.
4. Findings as sentences, the worst first; audit.json and audit.html.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vd.audit import shortcuts
from vd.audit.findings import findings
from vd.audit.fingerprints import Fingerprint, fingerprint_videos, read_pictures
from vd.audit.leakage import VideoPair, video_pairs, without_leaks
from vd.audit.near_duplicates import Pair, find_pairs
from vd.config import Config
from vd.console import say
from vd.data.catalog import identify
from vd.data.groups import groups_cut, merge_groups
from vd.data.ledger import Ledger, report
from vd.data.manifest import CLASSES, Video, read_manifest
from vd.data.splits import kept_splits
from vd.errors import VdError
from vd.evaluation.predictions import read_run
from vd.features.backbone import Backbone, find_backbone
from vd.features.engines import make_engine
from vd.files import write_csv, write_json, write_text
from vd.report.page import picture, render
from vd.training.run_folder import videos_of

_MOST_CLIPS = 2000  # of a shortcut test: a larger set is sampled
_MOST_PAIRS = 60  # on the page; audit.json has all


def audit(
    config: Config, report_dir: Path, run_dir: Path | None = None
) -> dict[str, Any]:
    """Audit a data set, write audit.json and audit.html; returns the former's content.

    Splits are those of `run_dir`, whose test accuracy is then counted again without leaked
    clips; without a run the data set's own, else those kept in the splits file. Raises
    `VdError` when the run was trained on files that the data set does not have.
    """
    backbone = find_backbone(config.backbone)
    manifest = read_manifest(config.data)
    report_dir.mkdir(parents=True, exist_ok=True)  # or fail before the work
    given = identify(manifest.videos, config.data.cache_dir)
    own_splits = any(video.split for video in given)
    tested = read_run(run_dir) if run_dir is not None else None
    if run_dir is not None:
        videos = _with_splits_of(run_dir, given, config.data.dataset_path)
    else:
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
        "run": tested and without_leaks(tested, usable, pairs),
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


def _with_splits_of(
    run_dir: Path, videos: Sequence[Video], dataset_path: Path
) -> list[Video]:
    """The videos with a run's splits."""
    # by file, for copies of one clip may be in two splits
    split_of = {(v.name, v.id): v.split for v in videos_of(run_dir, dataset_path)}
    missing = split_of.keys() - {(video.name, video.id) for video in videos}
    if missing:
        raise VdError(
            f"--checkpoint-dir {run_dir} was trained on {len(missing)} files that are missing "
            f"or have changed in --dataset-path {dataset_path} (for example "
            f"{min(missing)[0]!r}); name the data set that it was trained on."
        )
    return [
        dataclasses.replace(v, split=split_of.get((v.name, v.id), "")) for v in videos
    ]


def _shortcuts(
    ledger: Ledger,
    fingerprints: Mapping[str, Fingerprint],
    alike: Sequence[Pair],
    backbone: Backbone,
    config: Config,
) -> dict[str, dict[str, Any] | None]:
    """AUC from metadata, from a middle frame, and from its borders, over one copy of a clip."""
    entries = {e.video.id: e for e in ledger.entries if e.video.id in fingerprints}
    merged = merge_groups(
        [entry.video for entry in entries.values()],
        [(pair.first, pair.second) for pair in alike],
    )
    order = np.random.Generator(np.random.Philox(0)).permutation(len(merged))
    chosen = [merged[i] for i in sorted(order[:_MOST_CLIPS])]
    labels_N = np.array([video.label for video in chosen])
    groups = [video.group or video.id for video in chosen]
    groups_N = np.unique(groups, return_inverse=True)[1]
    if not shortcuts.is_testable(labels_N, groups_N):
        return dict.fromkeys(("metadata", "frame", "borders"))
    engine = make_engine(backbone, config.backbone.engine)
    kept = read_pictures(config.data.cache_dir, [video.id for video in chosen])
    pictures = [kept[video.id] for video in chosen]
    metadata_NxD = shortcuts.metadata(
        chosen,
        [entries[video.id].outcome for video in chosen],
        [fingerprints[video.id] for video in chosen],
    )
    frame_NxD = shortcuts.picture_features(pictures, engine, backbone.size)
    borders_NxD = shortcuts.picture_features(pictures, engine, backbone.size, True)
    return {
        name: shortcuts.shortcut(model, features_NxD, labels_N, groups_N)
        for name, model, features_NxD in (
            ("metadata", shortcuts.metadata_model(), metadata_NxD),
            ("frame", shortcuts.picture_model(), frame_NxD),
            ("borders", shortcuts.picture_model(), borders_NxD),
        )
    }


def _page(values: Mapping[str, Any], pairs: Sequence[VideoPair], cache: Path) -> str:
    """audit.html, with a picture of each video of the worst pairs."""
    # one scene within one group is what groups are for
    shown = [pair for pair in pairs if pair.same_footage or not pair.grouped]
    shown = shown[:_MOST_PAIRS]
    ids = {video.id for pair in shown for video in (pair.first, pair.second)}
    return render(
        "vd.audit",
        "audit.html.j2",
        {
            "title": f"Audit of {values['dataset']}",
            "values": values,
            "classes": CLASSES,
            "pairs": shown,
            "pictures": {
                video_id: picture(content, "jpeg", "middle frame")
                for video_id, content in read_pictures(cache, ids).items()
            },
        },
    )
