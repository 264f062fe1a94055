"""Study: which head makes the most of one set of features? Chosen on inner folds alone.

    python experiments/heads.py --dataset-path scfd/manifest.csv --cache-dir CACHE
    python experiments/heads.py --dataset-path scfd/manifest.csv --cache-dir CACHE --table

Five outer folds, groups whole; each training part has three inner folds. A training of a
setting on two inner folds is tested on the third, and is a line of heads.jsonl with its
logits: a rerun skips it, a kill costs one. `--outer` tests the outer folds with the setting
`FIXED` and the probe; it is set and committed when the inner scores have chosen.

Source:   the head of vd is no better than logistic regression on the same features
Cost:     the table has the seconds of a training; a setting takes 15 of them
Promised: nothing
Measured: heads.jsonl, and the table that `--table` prints
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tyro
from heads_lines import Clip, Line, Results, Setting, append, key_of, read_results
from heads_table import best_C, table

from vd.cli import run_command
from vd.config import BackboneConfig, Config, DataConfig
from vd.console import say
from vd.data.manifest import Video, check_classes
from vd.data.splits import folds, for_folds
from vd.errors import VdError

if TYPE_CHECKING:  # they import JAX, which a decoding worker need not
    from vd.training.feature_set import FeatureSet

LINES = Path(__file__).with_suffix(".jsonl")
OUTER, INNER, SPLIT_SEED = 5, 3, 0
FIXED: str | None = "correction rate 0.1, mixup, change"  # chosen by inner scores alone

_BASE = Setting(linear=True, correction=True)
_LINEAR = Setting(linear=True, recurrent=False)
_CHANGE = _LINEAR.changed(change=True)
_CORRECTION = _BASE.changed(change=True, detector_rate=0.1)
SETTINGS = {
    **{f"probe C {C:g}": Setting(C=C) for C in (0.0001, 0.001, 0.01, 0.1, 1.0)},
    **{f"probe pca {k}": Setting(C=0.01, components=k) for k in (16, 32, 64)},
    "linear": _LINEAR,
    "linear mixup": _LINEAR.changed(mixup_alpha=0.2),
    "linear mixup 0.5": _LINEAR.changed(mixup_alpha=0.5),
    "linear mixup 1": _LINEAR.changed(mixup_alpha=1.0),
    "linear mixup 1, 80 epochs": _LINEAR.changed(mixup_alpha=1.0, epochs=80),
    "linear frame dropping": _LINEAR.changed(frame_dropping_rate=0.3),
    "linear 20 epochs": _LINEAR.changed(epochs=20),
    "linear 80 epochs": _LINEAR.changed(epochs=80),
    "bilstm standardised": Setting(),
    "correction": _BASE,
    "bilstm beside linear": Setting(linear=True),
    "bilstm": Setting(standardised=False),
    "correction rate 0.1": _BASE.changed(detector_rate=0.1),
    "correction pca 64": _BASE.changed(components=64),
    "correction frame dropping": _BASE.changed(frame_dropping_rate=0.3),
    "correction mixup": _BASE.changed(mixup_alpha=0.2),
    "correction rate 0.1, mixup": _BASE.changed(detector_rate=0.1, mixup_alpha=0.2),
    "bilstm input dropout": Setting(input_dropout=0.5),
    "correction 20 epochs": _BASE.changed(epochs=20),
    "correction input dropout": _BASE.changed(input_dropout=0.5),
    "correction average": _BASE.changed(average_decay=0.98),
    "correction decay 10": _BASE.changed(detector_decay=10.0),
    "correction pca 128": _BASE.changed(components=128),
    "correction pca 256": _BASE.changed(components=256),
    "correction rate 0.3": _BASE.changed(detector_rate=0.3),
    "correction 80 epochs": _BASE.changed(epochs=80),
    "probe C 0.01, change": Setting(C=0.01, change=True),
    "linear, change": _CHANGE,
    "linear mixup, change": _CHANGE.changed(mixup_alpha=0.2),
    "linear no jitter, change": _CHANGE.changed(temporal_jitter=0.0),
    "linear no jitter, mixup, change": _CHANGE.changed(
        temporal_jitter=0.0, mixup_alpha=0.2
    ),
    "correction, change": _BASE.changed(change=True),
    "correction rate 0.1, change": _CORRECTION,
    "correction rate 0.1, mixup, change": _CORRECTION.changed(mixup_alpha=0.2),
    "correction rate 0.1, no jitter, mixup, change": _CORRECTION.changed(
        temporal_jitter=0.0, mixup_alpha=0.2
    ),
}


class Part(NamedTuple):
    """What one training sees, and what it is tested on."""

    outer: int
    inner: int | None  # None: the outer fold is tested
    train: list[Video]
    test: list[Video]


def inner_parts(
    videos: Sequence[Video], split_seed: int = SPLIT_SEED
) -> Iterator[Part]:
    """Each inner fold of each outer fold's training part; no clip of the outer fold."""
    for part in outer_parts(videos, split_seed):
        fold_of = folds(part.train, INNER, split_seed)
        for inner in range(INNER):
            yield Part(
                part.outer, inner,
                [video for video in part.train if fold_of[video.id] != inner],
                [video for video in part.train if fold_of[video.id] == inner],
            )  # fmt: skip


def outer_parts(
    videos: Sequence[Video], split_seed: int = SPLIT_SEED
) -> Iterator[Part]:
    """Each outer fold, as `vd crossval` has it, and the clips outside it."""
    fold_of = folds(videos, OUTER, split_seed)
    for outer in range(OUTER):
        yield Part(
            outer, None,
            [video for video in videos if fold_of[video.id] != outer],
            [video for video in videos if fold_of[video.id] == outer],
        )  # fmt: skip


def main(
    dataset_path: Path,
    cache_dir: Path = Path("cache"),
    only: tuple[str, ...] = (),
    parts: tuple[int, ...] = tuple(range(OUTER)),
    seeds: tuple[int, ...] = (0,),
    outer: bool = False,
    table: bool = False,
    lines: Path = LINES,
) -> int:
    """Run what is missing of the settings, or of those in `only`, then print the table.

    `parts` are the outer folds whose training parts are worked on, in this order. `outer`
    tests the outer folds with the fixed setting and the probe; `table` runs nothing.
    """
    dataset = dataset_path.parent.name if dataset_path.suffix else dataset_path.name
    if not table:
        if unknown := set(only) - set(SETTINGS):
            raise VdError(
                f"--only {min(unknown)!r} is no setting; {', '.join(SETTINGS)} are."
            )
        videos, data = load(dataset_path, cache_dir)
        start(lines, dataset, videos, data)
        if outer:
            run_outer(lines, dataset, videos, data, seeds)
        else:
            names = only or tuple(SETTINGS)
            run_inner(lines, dataset, videos, data, names, parts, seeds)
    print_table(lines, dataset)
    return 0


def load(
    dataset_path: Path, cache_dir: Path, backbone: BackboneConfig | None = None
) -> tuple[list[Video], "FeatureSet"]:
    """The usable clips, one of each content, and their features in memory."""
    from vd.experiment import prepare

    data = DataConfig(dataset_path, cache_dir)
    config = Config(data, backbone=backbone or BackboneConfig())
    prepared = prepare(config, assign=for_folds)
    videos = list({video.id: video for video in prepared.ledger.usable()}.values())
    from vd.training.feature_set import FeatureSet

    return videos, FeatureSet(videos, prepared.store)


def start(
    lines: Path, dataset: str, videos: Sequence[Video], data: "FeatureSet"
) -> None:
    """`start_lines`; lines of a setting with other values than here are an error too."""
    results = start_lines(lines, dataset, videos, data.store.fingerprint)
    for (setting, *_), line in results.lines.items():
        known = SETTINGS.get(setting)
        if known is None or Setting(**line["settings"]) != known:
            raise VdError(
                f"{lines} has the setting {setting} with values that are not those of this "
                "script; delete its lines, and it is run again."
            )


def start_lines(
    lines: Path, dataset: str, videos: Sequence[Video], features: str,
    split_seed: int = SPLIT_SEED,
) -> Results:  # fmt: skip
    """Write the data set's line, or check it: other clips or features are an error."""
    outer_of = folds(videos, OUTER, split_seed)
    groups = sorted({video.group or video.id for video in videos})
    clips = {
        name_of(video): Clip(
            video.label, groups.index(video.group or video.id), outer_of[video.id]
        )
        for video in videos
    }
    append(
        lines,
        {"dataset": dataset, "features": features, "clips": clips},
    )
    results = read_results(lines, dataset)
    assert results is not None
    if (results.features, results.clips) != (features, clips):
        raise VdError(
            f"{lines} has lines of other clips, groups or features named {dataset}; name "
            "another file with --lines."
        )
    return results


def name_of(video: Video) -> str:
    """What a line calls a clip: the beginning of its content hash."""
    return video.id[:8]


def run_inner(
    lines: Path, dataset: str, videos: Sequence[Video], data: "FeatureSet",
    names: Sequence[str], outers: Sequence[int], seeds: Sequence[int],
) -> None:  # fmt: skip
    """The settings on the inner folds of one outer fold after another."""
    parts = list(inner_parts(videos))
    for part in parts:
        for clips in (part.train, part.test):
            check_classes(
                clips,
                f"inner fold {part.inner} of outer fold {part.outer}",
                "give a data set with more groups of each class",
            )
    for outer in outers:
        own = [part for part in parts if part.outer == outer]
        for seed in seeds:
            for name in names:
                if SETTINGS[name].C is None or seed == 0:  # the probe draws nothing
                    run_parts(lines, dataset, name, own, data, seed)


def run_outer(
    lines: Path, dataset: str, videos: Sequence[Video], data: "FeatureSet",
    seeds: Sequence[int],
) -> None:  # fmt: skip
    """The fixed setting, and the probe with the C of each part's inner folds."""
    if FIXED is None:
        raise VdError(
            "--outer needs a setting that inner scores have chosen; name it in FIXED and "
            "commit that first."
        )
    parts = list(outer_parts(videos))
    results = read_results(lines, dataset)
    assert results is not None
    for part in parts:
        name = best_C(results, part.outer)
        run_parts(lines, dataset, name, [part], data, 0)
    for seed in seeds:
        run_parts(lines, dataset, FIXED, parts, data, seed)


def run_parts(
    lines: Path, dataset: str, name: str, parts: Sequence[Part], data: "FeatureSet",
    seed: int, setting: Setting | None = None,
) -> None:  # fmt: skip
    """Train and test a setting, that of the name unless given, on parts without a line."""
    from heads_training import test_logits

    setting = setting or SETTINGS[name]
    for part in parts:
        line: Line = {
            "dataset": dataset, "setting": name, "outer": part.outer,
            "inner": part.inner, "seed": seed,
        }  # fmt: skip
        if key_of(line) in _lines_of(read_results(lines, dataset)):
            continue
        began = time.process_time()
        logits_N = test_logits(setting, data, part.train, part.test, seed)
        seconds = time.process_time() - began
        append(
            lines,
            line
            | {
                "settings": asdict(setting),
                "cpu_seconds": round(seconds, 1),
                "train_clips": len(part.train),
                "clips": [name_of(video) for video in part.test],
                "logits": [round(float(logit), 5) for logit in logits_N],
            },
        )
        say(
            f"{name}, outer {part.outer}, inner {part.inner}, seed {seed}: {seconds:.1f} s"
        )


def _lines_of(results: Results | None) -> dict[tuple[Any, ...], Line]:
    return {} if results is None else results.lines


def print_table(lines: Path, dataset: str) -> None:
    """The table of what is finished, from the lines alone."""
    results = read_results(lines, dataset)
    if results is None:
        raise VdError(
            f"{lines} has no line of {dataset}; run the study without --table."
        )
    print(table(results))


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
