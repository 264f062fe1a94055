"""Models tested on another data set, without the clips that they were trained on.

One run (`vd evaluate --on`), or every member of a cross-validation: a matrix of what was
trained on and what was tested on.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vd.config import Config, DataConfig
from vd.console import say
from vd.data.catalog import identify
from vd.data.ledger import report
from vd.data.manifest import Video, read_manifest
from vd.errors import VdError
from vd.evaluation.crossval import over_models
from vd.evaluation.evaluate import evaluate_split
from vd.evaluation.predictions import PROBE, Member, read_run
from vd.evaluation.restore import check_features, moved, restore
from vd.features.backbone import find_backbone
from vd.features.extract import extract
from vd.features.seen import Seen, find_seen
from vd.features.store import FeatureStore
from vd.files import read_json
from vd.metrics.binary import METRICS, collapsed
from vd.training.feature_set import FeatureSet
from vd.training.run_folder import dataset_fingerprint, videos_of

_GENERIC = re.compile(
    r"manifest|labels?|index|data(set)?|annotations|metadata|videos|all"
)
_TAKEN = ("train", "val", "test", "all", PROBE)  # names of a run's own evaluations


class Other(NamedTuple):
    """Another data set, and what the backbone has seen of it.

    Before extraction every readable video counts as usable.
    """

    path: Path
    videos: list[Video]  # usable ones
    quarantined: int
    seen: Seen

    def unseen(self, run_dir: Path) -> tuple[list[Video], dict[str, Any]]:
        """The clips that made neither a run nor its backbone, and the keys about them."""
        kept, left_out = unseen_videos(run_dir, self.videos, self.seen)
        return kept, {
            "dataset": str(self.path.absolute()),
            "dataset_fingerprint": dataset_fingerprint(kept),
            "left_out": left_out,
            "quarantined": self.quarantined,
        }


def unseen_videos(
    run_dir: Path, videos: Sequence[Video], seen: Seen
) -> tuple[list[Video], dict[str, int]]:
    """Those that made neither a run nor its backbone; how many others there are, and why.

    A clip is left out for its content; as a near duplicate of what the backbone has seen;
    or for its group: one that the run knew, or that has a clip of such content.
    """
    own = [v for v in videos_of(run_dir, Path()) if v.split in ("train", "val")]
    ids = seen.ids | {video.id for video in own}
    groups = seen.groups | {video.group for video in own}
    groups |= {video.group for video in videos if video.id in ids}
    fresh = [video for video in videos if video.id not in ids]
    others = [video for video in fresh if video.id not in seen.copies]
    kept = [video for video in others if video.group not in groups - {""}]
    return kept, {
        "content": len(videos) - len(fresh),
        "near_duplicate": len(fresh) - len(others),
        "group": len(others) - len(kept),
    }


def evaluate_on(
    run_dir: Path,
    dataset_path: Path,
    name: str | None = None,
    tta: bool = False,
    cache_dir: Path | None = None,
    positive_class: tuple[str, ...] = (),
    group_from: str | None = None,
) -> dict[str, Any]:
    """Evaluate all of another data set with the run's temperature and threshold.

    Its features are extracted into the run's cache. Returns and writes what
    `evaluate_split` does, by the data set's name. Raises `VdError` when the run or its
    backbone has seen all of its clips.
    """
    if not dataset_path.exists():
        raise VdError(f"--on {dataset_path} does not exist; name a data set.")
    restored = restore(run_dir)
    config = moved(restored.config, run_dir, dataset_path, cache_dir)
    data = replace(config.data, positive_class=positive_class, group_from=group_from)
    config = replace(config, data=data)
    name = name or dataset_name(dataset_path)
    _check_name(run_dir, name, dataset_path)

    def check(other: Other) -> None:
        if not other.unseen(run_dir)[0]:
            raise VdError(
                f"--on {dataset_path}: {run_dir} or its backbone was trained or validated on "
                f"all of its {len(other.videos)} usable clips, on copies of them, or on their "
                "groups; name a data set with usable clips that it has not seen."
            )

    other, store = _open(config, run_dir, check)
    videos, facts = other.unseen(run_dir)
    content, copies, group = facts["left_out"].values()
    say(
        f"{len(videos)} clips of {name}; left out, as the run or its backbone was trained or "
        f"validated on them: {content} by content, {copies} more as near duplicates, {group} "
        "more by group"
    )
    features = FeatureSet(videos, store)
    return evaluate_split(restored, features, run_dir, name, tta, facts)


def evaluate_members_on(
    members: Sequence[Member], data: DataConfig, name: str
) -> list[Member | None]:
    """Every member's predictions for another data set; None where it knew all its clips.

    Writes the files of an evaluation called `name`, without pictures, into each member's
    folder.
    """
    first = members[0].run_dir
    config = moved(restore(first).config, first, None, None)
    other, store = _open(replace(config, data=data), first)
    everything = FeatureSet(other.videos, store)
    tested: list[Member | None] = []
    for member in members:
        run_dir = member.run_dir
        videos, facts = other.unseen(run_dir)
        if not videos:
            tested.append(None)
            continue
        part = everything.part(videos)
        evaluate_split(restore(run_dir), part, run_dir, name, more=facts, draw=False)
        say(f"{run_dir.name} is tested on {len(videos)} clips of {name}")
        ids = {video.name: video.id for video in videos}
        tested.append(read_run(run_dir, member.fold, name, ids))
    return tested


def _open(
    config: Config, run_dir: Path, check: Callable[[Other], None] = lambda _: None
) -> tuple[Other, FeatureStore]:
    """Read and extract the data set that `config` names, for a run in `run_dir`.

    `check` is called before extraction, and again without the videos that it quarantined.
    """
    manifest = read_manifest(config.data, config.decode, both_classes=False)
    videos = identify(manifest.videos, config.data.cache_dir)
    backbone = find_backbone(config.backbone)
    check_features(backbone, run_dir)
    readable = [video for video in videos if video.id]
    other = Other(config.data.dataset_path, readable, 0, Seen())
    for seen in find_seen(backbone.seen, readable, config.data, config.decode):
        other = other._replace(seen=seen)
        check(other)
    store, ledger = extract(videos, config, backbone)
    report(ledger, manifest.ignored, config.data.cache_dir / "ledger.csv")
    usable = ledger.usable()
    other = other._replace(videos=usable, quarantined=len(videos) - len(usable))
    check(other)
    return other, store


def dataset_name(path: Path) -> str:
    """What a data set is called: its folder, or its CSV unless all are called so."""
    place = path.absolute()
    if place.is_file() or place.suffix == ".csv":
        if not _GENERIC.fullmatch(place.stem.casefold()):
            return place.stem
        place = place.parent
    if place.name in _TAKEN:
        return f"{place.parent.name}-{place.name}"
    return place.name or "other"


def cell(members: Sequence[Member | None]) -> dict[str, Any]:
    """A cell of the matrix: mean over members, over the clips that none of them knew."""
    tested = [set(member.predictions.paths) if member else set() for member in members]
    common = set.intersection(*tested)
    if not common:
        undefined = dict.fromkeys(("mean", "ci95", "sd"))
        return _cell(0, len(members), 0, dict.fromkeys(METRICS, undefined))
    chosen = []
    for member in filter(None, members):
        inside = [i for i, p in enumerate(member.predictions.paths) if p in common]
        chosen.append(member.predictions.chosen(inside))
    fallen = sum(collapsed(of.labels_N, of.predicted_N) for of in chosen)
    return _cell(len(common), len(members), fallen, over_models(chosen)[1])


def own_cell(own: Mapping[str, Any], members: int) -> dict[str, Any]:
    """The cell of the data set that was trained on: its held-out folds, pooled."""
    fallen = sum(row["collapsed"] for row in own["per_fold"])
    figures = {
        name: {**over, "sd": own["over_folds"][name]["sd"]}
        for name, over in own["over_seeds"].items()
    }
    return _cell(own["n"], members, fallen, figures)


def _cell(
    clips: int, members: int, fallen: int, figures: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A cell of so many clips and members, of which so many have collapsed."""
    result: dict[str, Any] = {"n": clips, "members": members, "collapsed": fallen}
    for name, over in figures.items():
        for key, suffix in (("mean", ""), ("ci95", "_ci95"), ("sd", "_sd")):
            result[name + suffix] = over[key]
    return result


def _check_name(run_dir: Path, name: str, dataset_path: Path) -> None:
    """Raise `VdError` when the files of `name` would be those of something else."""
    remedy = f"give the files of --on {dataset_path} another name with --name"
    if name in _TAKEN or name.endswith("_tta") or Path(name).name != name:
        raise VdError(
            f"{name!r} is the name of a run's own evaluation or cannot name a file; {remedy}."
        )
    path = run_dir / f"evaluation_{name}.json"
    if path.exists():
        former = read_json(path, "delete it").get("dataset")
        if former != str(dataset_path.absolute()):
            raise VdError(f"{path} is of another data set ({former}); {remedy}.")
