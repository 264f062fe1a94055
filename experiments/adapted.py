"""Study: what adapting the backbone gives on inner folds, alone and added to the probe.

    python experiments/adapted.py --dataset-path scfd/manifest.csv --cache-dir CACHE
    python experiments/adapted.py --dataset-path scfd/manifest.csv --table

The folds are those of heads.py: three inner folds in each outer training part. Each adaptation
is a line of adapted.jsonl with its logits; a rerun skips it, a kill costs less than one. The
table adds rows in which the logit is added to that of the linear probe on the frozen features
(heads.jsonl), each divided by its own inner temperature. `--outer` tests the outer folds.

Source:   frozen features of photographs know little of motion
Cost:     240 clips: four minutes an adaptation on two idle cores
Promised: nothing
Measured: adapted.jsonl, and docs/results.md
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from heads import LINES as PROBE_LINES
from heads import Part, inner_parts, name_of, outer_parts, start_lines
from heads_lines import Line, Results, append, key_of, read_results
from heads_table import REFERENCE, Row, Scored, inner_lines, scored, scores

from vd.cli import run_command
from vd.config import (
    ADAPTATION,
    ADAPTED_MODEL,
    AdaptConfig,
    Config,
    DataConfig,
    RunConfig,
)
from vd.console import say
from vd.data.splits import for_folds
from vd.metrics.binary import shown

LINES = Path(__file__).with_suffix(".jsonl")
SETTINGS = {
    "motion 160": AdaptConfig(),
    "square 160": AdaptConfig(stream="square"),
    "rgb 160": AdaptConfig(stream="rgb"),
    "motion 224": AdaptConfig(size=224),
}
_HEAD = """\
| setting | ROC AUC | log loss | accuracy | AUC less the probe's | parts |
|---|---|---|---|---|---|"""


def main(
    dataset_path: Path,
    cache_dir: Path = Path("cache"),
    only: tuple[str, ...] = ("motion 160",),
    parts: tuple[int, ...] = tuple(range(5)),
    seed: int = 0,
    outer: bool = False,
    table: bool = False,
    lines: Path = LINES,
) -> int:
    """Run what is missing of these settings and outer parts, then print the table."""
    dataset = dataset_path.parent.name if dataset_path.suffix else dataset_path.name
    if not table:
        for name in only:
            run_setting(
                lines, dataset, dataset_path, cache_dir, name, parts, seed, outer
            )
    print_table(lines, dataset)
    return 0


def run_setting(
    lines: Path, dataset: str, dataset_path: Path, cache_dir: Path, name: str,
    parts: Sequence[int], seed: int, outer: bool,
) -> None:  # fmt: skip
    """Adapt on each part that has no line yet, and test its held-out clips."""
    from vd.devices import training_devices
    from vd.experiment import prepare
    from vd.features.seen import clip_rows
    from vd.training.adapt import Adaptation, image_config
    from vd.training.feature_set import TRAINED_SHARE, FeatureSet

    config = Config(
        DataConfig(dataset_path, cache_dir),
        model=ADAPTED_MODEL,
        training=replace(ADAPTATION, seed=seed),
        run=RunConfig(cache_dir / "adapted"),
    )
    images = image_config(config, SETTINGS[name])
    prepared = prepare(images, assign=for_folds)
    videos = list({video.id: video for video in prepared.ledger.usable()}.values())
    data = FeatureSet(videos, prepared.store, share=TRAINED_SHARE)
    start_lines(lines, dataset, videos, data)
    devices = training_devices(None, config.training.batch_size)
    adaptation = Adaptation(
        images, SETTINGS[name], images.run.checkpoint_dir, devices,
        config.training.batch_size, clip_rows(videos, images.data, images.decode),
    )  # fmt: skip
    for part in chosen(outer_parts(videos) if outer else inner_parts(videos), parts):
        key: Line = {
            "dataset": dataset, "setting": name, "outer": part.outer,
            "inner": part.inner, "seed": seed,
        }  # fmt: skip
        results = read_results(lines, dataset)
        if results and key_of(key) in results.lines:
            continue
        folder = config.run.checkpoint_dir / file_name(key)
        clips = data.part([*part.train, *part.test])
        logits_N, _ = adaptation.held_out_logits(clips, part.test, folder)
        append(lines, key | facts(SETTINGS[name], part, logits_N))
        say(f"{name}, outer {part.outer}, inner {part.inner}, seed {seed} is done")


def chosen(parts: Iterator[Part], outers: Sequence[int]) -> Iterator[Part]:
    """The parts of some outer folds."""
    return (part for part in parts if part.outer in outers)


def file_name(key: Line) -> str:
    """Name of the folder of an adaptation that is under way."""
    return "_".join(str(key[name]).replace(" ", "-") for name in list(key)[1:])


def facts(settings: AdaptConfig, part: Part, logits_N: Any) -> Line:
    """What a line has beside its key."""
    return {
        "settings": asdict(settings),
        "train_clips": len(part.train),
        "clips": [name_of(video) for video in part.test],
        "logits": [round(float(logit), 5) for logit in logits_N],
    }


def print_table(lines: Path, dataset: str) -> None:
    """A row for each setting with complete inner folds, over the parts that it has."""
    results, frozen = read_results(lines, dataset), read_results(PROBE_LINES, dataset)
    assert results is not None
    print(_HEAD)
    for name in dict.fromkeys(name for name, *_ in results.lines):
        for label, row, probe in rows(name, results, frozen):
            auc = np.array([part.auc for part in row.parts])
            others = np.array([part.auc for part in probe.parts])
            print(
                f"| {label} | {shown('roc_auc', float(auc.mean()))} "
                f"| {np.mean([part.log_loss for part in row.parts]):.3f} "
                f"| {shown('accuracy', float(np.mean([p.accuracy for p in row.parts])))} "
                f"| {float((auc - others).mean()):+.3f} | {len(auc)} of 5 |"
            )


def rows(
    name: str, results: Results, frozen: Results | None
) -> Iterator[tuple[str, Row, Row]]:
    """The probe, the setting, and their sum, on the same clips."""
    own, probe, both = [], [], []
    for outer in range(5):
        lines = inner_lines(results, name, outer, 0)
        others = inner_lines(frozen, REFERENCE, outer, 0) if frozen and lines else None
        if not lines or not others:
            continue
        first, second = in_order(results, lines), in_order(frozen, others)
        own.append(scores(first))
        probe.append(scores(second))
        total = (
            first.logits_N / first.temperature + second.logits_N / second.temperature
        )
        both.append(scores(first._replace(logits_N=total / 2)))
    if own:
        reference = Row(REFERENCE, probe)
        yield f"{REFERENCE}, the same parts", reference, reference
        yield name, Row(name, own), reference
        yield f"{name} and {REFERENCE}", Row(name, both), reference


def in_order(results: Results | None, lines: Sequence[Line]) -> Scored:
    """The clips of some lines, sorted by their names."""
    assert results is not None
    names = np.array([name for line in lines for name in line["clips"]])
    order = np.argsort(names)
    return Scored(*(array[order] for array in scored(results, lines)))


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
