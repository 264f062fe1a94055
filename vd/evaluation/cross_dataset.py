"""A run evaluated on another data set, without the clips that it was trained on."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vd.config import Config
from vd.console import say
from vd.data.catalog import identify
from vd.data.ledger import report
from vd.data.manifest import Video, read_manifest
from vd.errors import VdError
from vd.evaluation.evaluate import evaluate_split
from vd.evaluation.restore import features_of_others, moved, restore
from vd.features.store import FeatureStore
from vd.files import read_json
from vd.training.feature_set import FeatureSet
from vd.training.run_folder import dataset_fingerprint, videos_of

_GENERIC = re.compile(
    r"manifest|labels?|index|data(set)?|annotations|metadata|videos|all"
)
_TAKEN = ("train", "val", "test", "all")  # names of a run's own evaluations


class Other(NamedTuple):
    """Another data set whose features are in the store."""

    name: str
    path: Path
    videos: list[Video]  # usable ones
    store: FeatureStore
    quarantined: int
    loss_gap: dict[str, float]  # of `Ledger.loss_gap`


def evaluate_on(
    run_dir: Path,
    dataset_path: Path,
    name: str | None = None,
    tta: bool = False,
    cache_dir: Path | None = None,
    positive_class: str | None = None,
    group_from: str | None = None,
) -> dict[str, Any]:
    """Evaluate all of another data set with the run's temperature and threshold.

    Its features are extracted into the run's cache. Returns, and writes into the run
    folder, what `vd.evaluation.evaluate` does, by the data set's name. Raises `VdError`
    when no clip is left, or the name is that of another evaluation.
    """
    restored = restore(run_dir)
    config = moved(restored.config, run_dir, dataset_path, cache_dir)
    data = replace(config.data, positive_class=positive_class, group_from=group_from)
    config = replace(config, data=data)
    name = name or dataset_name(dataset_path)
    _check_name(run_dir, f"{name}_tta" if tta else name, name, dataset_path)
    other = open_other(config, run_dir, name)
    videos, left_out = without_trained(other.videos, run_dir)
    if not videos:
        raise VdError(
            f"--on {dataset_path}: {run_dir} was trained or validated on all of its "
            f"{len(other.videos)} usable clips, or on their groups; name a data set that it "
            "has not seen."
        )
    say(
        f"{len(videos)} clips of {name}; left out, as the run was trained or validated on "
        f"them: {left_out['content']} by content, {left_out['group']} more by group"
    )
    restored = replace(restored, config=config)
    facts = facts_of(other, videos, left_out)
    features = FeatureSet(videos, other.store)
    return evaluate_split(restored, features, run_dir, name, tta, facts)


def open_other(config: Config, run_dir: Path, name: str) -> Other:
    """Read and extract the data set that `config` names, for a run in `run_dir`."""
    manifest = read_manifest(config.data, both_classes=False)
    videos = identify(manifest.videos, config.data.cache_dir)
    store, ledger = features_of_others(videos, config, run_dir)
    report(ledger, manifest.ignored, config.data.cache_dir / "ledger.csv")
    usable = ledger.usable()
    if not usable:
        raise VdError(
            f"none of the {len(videos)} files of {config.data.dataset_path} is usable; the "
            "reasons are above: mend the files, or name another data set."
        )
    gap, lost = ledger.loss_gap(), len(videos) - len(usable)
    if lost:
        say(
            f"warning: {lost} files of {name} were lost, {100 * gap['lost_violent']:.0f} % of "
            f"violent and {100 * gap['lost_nonviolent']:.0f} % of non-violent ones: the figures "
            "are of the others"
        )
    return Other(name, config.data.dataset_path, usable, store, lost, gap)


def facts_of(
    other: Other, videos: Sequence[Video], left_out: dict[str, int]
) -> dict[str, Any]:
    """What an evaluation says of the other data set."""
    return {
        "dataset": str(other.path.absolute()),
        "dataset_fingerprint": dataset_fingerprint(videos),
        "left_out": left_out,
        "quarantined": other.quarantined,
        "loss_gap": other.loss_gap,
    }


def without_trained(
    videos: Sequence[Video], run_dir: Path
) -> tuple[list[Video], dict[str, int]]:
    """The clips that a run was not trained or validated on; how many others, and why.

    A clip is left out for its content, or for its group: one that the run knew, or that
    has a clip of such content.
    """
    seen = [v for v in videos_of(run_dir, Path()) if v.split in ("train", "val")]
    ids = {video.id for video in seen}
    groups = {video.group for video in seen}
    groups |= {video.group for video in videos if video.id in ids}
    groups -= {""}
    fresh = [video for video in videos if video.id not in ids]
    kept = [video for video in fresh if video.group not in groups]
    left_out = {"content": len(videos) - len(fresh), "group": len(fresh) - len(kept)}
    return kept, left_out


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


def _check_name(run_dir: Path, file_name: str, name: str, dataset_path: Path) -> None:
    """Raise `VdError` when the files of `name` would be those of something else."""
    if not dataset_path.exists():
        raise VdError(
            f"--on {dataset_path} does not exist; name a folder of class folders or a CSV "
            "with the columns path,label."
        )
    if name.endswith("_tta"):
        raise VdError(
            f"--name {name} is what --tta calls its files; give a name of another ending."
        )
    told = f"give the files of --on {dataset_path} another name with --name"
    if re.sub("(_tta)+$", "", name) in _TAKEN or Path(name).name != name:
        raise VdError(f"{name!r} cannot be the name of another data set; {told}.")
    path = run_dir / f"evaluation_{file_name}.json"
    if not path.exists():
        return
    before = read_json(path, "delete it, and the same command evaluates again")
    former = before.get("dataset") if isinstance(before, dict) else None
    if former != str(dataset_path.absolute()):
        raise VdError(f"{path} is of another data set ({former}); {told}.")
