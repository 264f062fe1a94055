"""Study: what adapting the backbone gives, alone and added to linear probes of the frozen one.

    python experiments/adapted.py --dataset-path scfd/manifest.csv --cache-dir CACHE
    python experiments/adapted.py --dataset-path scfd/manifest.csv --cache-dir CACHE \
        --outer --split-seeds 0 1 2 3 4
    python experiments/adapted.py --dataset-path scfd/manifest.csv --table

The folds are those of heads.py: three inner folds in each outer training part. Each adaptation
or probe is a line of adapted.jsonl with its logits; a rerun skips it, a kill costs less than
one. A sum adds logits, each divided by its own inner temperature. `--outer` tests the outer
folds with `FIXED`, which inner scores have chosen, and with what it consists of.

Source:   frozen features of photographs know little of motion
Cost:     240 clips: four minutes an adaptation on two idle cores, seconds a probe
Promised: nothing
Measured: adapted.jsonl, and docs/results.md
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from heads import Part, inner_parts, name_of, outer_parts, start_lines
from heads_lines import Line, Results, append, key_of, read_results
from heads_table import (
    OUTER_HEAD,
    SHOWN,
    OuterFolds,
    Scored,
    inner_lines,
    log_loss,
    outer_row,
    outers,
    scored,
    scores,
)
from probe import mean_and_deviation

from vd.cli import run_command
from vd.config import (
    ADAPTATION,
    ADAPTED_MODEL,
    AdaptConfig,
    BackboneConfig,
    Config,
    DataConfig,
    RunConfig,
)
from vd.console import say
from vd.data.splits import for_folds
from vd.errors import VdError
from vd.metrics.binary import shown
from vd.metrics.intervals import interval

LINES = Path(__file__).with_suffix(".jsonl")
PROBE = "probe 224: rgb, motion, square"  # of the default preset, the one to beat
SQUARE, BOTH = "probe 160: square", "probe 160: motion, square"
CHANGE = ", change"  # read by mean and change, not by mean and deviation
PROBES: dict[str, AdaptConfig | None] = {  # None: the default preset
    PROBE: None,
    SQUARE: AdaptConfig(frozen_streams=("square",)),
    BOTH: AdaptConfig(frozen_streams=("motion", "square")),
}
PROBES |= {name + CHANGE: settings for name, settings in PROBES.items()}
ADAPTED = {
    "motion 160": AdaptConfig(frozen_streams=()),
    "square 160": AdaptConfig(streams=("square",), frozen_streams=()),
    "rgb 160": AdaptConfig(streams=("rgb",), frozen_streams=()),
    "motion 224": AdaptConfig(size=224, frozen_streams=()),
}
# lines of a way that is not kept: the network was trained with a read-out of the mean and
# the change of three pairs of successive frames
TRIED = "motion 160" + CHANGE
FIXED = "motion 160", SQUARE + CHANGE
SUMS = (
    FIXED,
    ("motion 160", BOTH + CHANGE),
    ("motion 160", PROBE + CHANGE),
    (TRIED, SQUARE + CHANGE),
    ("motion 160", SQUARE),
    ("motion 160", PROBE),
    ("square 160", PROBE),
    ("motion 160", "square 160"),
    ("motion 160", BOTH),
    ("square 160", SQUARE),
    ("square 160", BOTH),
    ("motion 160", "square 160", PROBE),
    ("motion 160", "square 160", SQUARE),
    ("motion 160", "square 160", BOTH),
)
_INNER_HEAD = """\
| setting | ROC AUC | log loss | accuracy | AUC less the probe's | parts |
|---|---|---|---|---|---|"""


def main(
    dataset_path: Path,
    cache_dir: Path = Path("cache"),
    only: tuple[str, ...] = (FIXED[0], *PROBES),
    parts: tuple[int, ...] = tuple(range(5)),
    seed: int = 0,
    split_seeds: tuple[int, ...] = (0,),
    outer: bool = False,
    table: bool = False,
    lines: Path = LINES,
) -> int:
    """Run what is missing of these settings and outer parts, then print the tables."""
    name = dataset_path.parent.name if dataset_path.suffix else dataset_path.name
    config = Config(
        DataConfig(dataset_path, cache_dir),
        model=ADAPTED_MODEL,
        training=replace(ADAPTATION, seed=seed),
        run=RunConfig(cache_dir / "adapted"),
    )
    for split_seed in split_seeds if not table else ():
        for setting in only:
            study = Study(lines, named(name, split_seed), config, setting, split_seed)
            if outer:
                study.run(outer_parts, parts)
            if not outer or setting in PROBES:  # a probe's inner folds cost nothing
                study.run(inner_parts, parts)
    print_tables(lines, name)
    return 0


def named(dataset: str, split_seed: int) -> str:
    """What the lines of other folds of a data set call it."""
    return f"{dataset}, split seed {split_seed}" if split_seed else dataset


class Study:
    """One setting on the folds of one split seed."""

    def __init__(
        self, lines: Path, dataset: str, config: Config, setting: str, split_seed: int
    ) -> None:
        """Extract images or features, unless they are kept."""
        from vd.experiment import prepare
        from vd.features.seen import contents_fingerprint
        from vd.training.adapt import image_config
        from vd.training.feature_set import TRAINED_SHARE, FeatureSet

        self.lines, self.dataset, self.setting = lines, dataset, setting
        self.split_seed = split_seed
        if setting in PROBES:
            self.config = with_frozen(config, PROBES[setting])
        else:
            (stream,) = ADAPTED[setting].streams
            self.config = image_config(config, ADAPTED[setting], stream)
        prepared = prepare(self.config, assign=for_folds)
        usable = {video.id: video for video in prepared.ledger.usable()}
        self.videos = list(usable.values())
        self.data = FeatureSet(self.videos, prepared.store, share=TRAINED_SHARE)
        # not of the features: each setting has images of its own
        contents = contents_fingerprint(self.videos)
        start_lines(lines, dataset, self.videos, contents, split_seed)

    def run(self, folds: Any, wanted: Sequence[int]) -> None:
        """Test each part of some outer folds that has no line yet."""
        for part in folds(self.videos, self.split_seed):
            seed = 0 if self.setting in PROBES else self.config.training.seed
            key: Line = {
                "dataset": self.dataset, "setting": self.setting, "outer": part.outer,
                "inner": part.inner, "seed": seed,
            }  # fmt: skip
            results = read_results(self.lines, self.dataset)
            assert results is not None
            if part.outer not in wanted or key_of(key) in results.lines:
                continue
            logits_N = self.logits(part, file_name(key, self.split_seed))
            append(self.lines, key | facts(self.setting, part, logits_N))
            say(f"{self.dataset}: {self.setting}, {part.outer}, {part.inner} is done")

    def logits(self, part: Part, folder: str) -> Any:
        """Logits of a part's clips by what was trained on the others."""
        if self.setting in PROBES:
            from vd.training.regression import (
                fit_regression,
                pooled,
                regression_logits,
            )

            read = pooled if self.setting.endswith(CHANGE) else by_deviation
            train, test = self.data.part(part.train), self.data.part(part.test)
            fitted = fit_regression(read(train), train.labels_N.astype(int))
            return regression_logits(fitted, read(test))
        clips = self.data.part([*part.train, *part.test])
        path = self.config.run.checkpoint_dir.parents[1] / folder
        return self.adaptation().held_out_logits(clips, part.test, path)[0]

    def adaptation(self) -> Any:
        """What adapts to the images."""
        from vd.devices import training_devices
        from vd.features.seen import clip_rows
        from vd.training.adapt import Adaptation

        batch_size = self.config.training.batch_size
        settings = ADAPTED[self.setting]
        return Adaptation(
            self.config, settings, settings.streams[0],
            self.config.run.checkpoint_dir, training_devices(None, batch_size),
            batch_size, clip_rows(self.videos, self.config.data, self.config.decode),
        )  # fmt: skip


def by_deviation(data: Any) -> Any:
    """Mean and deviation of each clip, which was read before its change; N×P."""
    return np.stack([mean_and_deviation(plain) for (plain,) in data.in_order()])


def with_frozen(config: Config, settings: AdaptConfig | None) -> Config:
    """The configuration whose features are the pretrained network's."""
    from vd.features.network import write_networks
    from vd.training.adapt import frozen_network

    if settings is None:
        return config
    file = config.data.cache_dir / f"frozen-{'-'.join(settings.frozen_streams)}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    # halved, as `vd adapt` keeps it
    write_networks(file, [frozen_network(settings)], half=True)
    return replace(config, backbone=BackboneConfig(backbone=str(file)))


def file_name(key: Line, split_seed: int) -> str:
    """Name of the folder of an adaptation that is under way."""
    parts = *(str(value) for value in key.values()), str(split_seed)
    return "_".join(parts).replace(" ", "-")


def facts(setting: str, part: Part, logits_N: Any) -> Line:
    """What a line has beside its key."""
    settings = ADAPTED.get(setting) or PROBES[setting]
    return {
        "settings": {} if settings is None else asdict(settings),
        "train_clips": len(part.train),
        "clips": [name_of(video) for video in part.test],
        "logits": [round(float(logit), 5) for logit in logits_N],
    }


def print_tables(lines: Path, dataset: str) -> None:
    """The inner scores, then the outer folds of every split seed that has them."""
    by_seed = {}
    for split_seed in range(5):
        results = read_results(lines, named(dataset, split_seed))
        if results is not None:
            by_seed[split_seed] = results
    if 0 not in by_seed:
        raise VdError(
            f"{lines} has no line of {dataset}, split seed 0; run that first."
        )
    names = [*PROBES, *ADAPTED, TRIED]
    print(_INNER_HEAD)
    for row in [(name,) for name in names] + list(SUMS):
        print_inner(row, by_seed[0])
    print(f"\n{OUTER_HEAD}")
    for row in [(name,) for name in (*PROBES, FIXED[0])] + [
        FIXED,
        ("motion 160", SQUARE),
    ]:
        print_outer(row, by_seed)


def print_inner(names: Sequence[str], results: Results) -> None:
    """A row over the outer training parts whose inner folds are complete."""
    own, probe = [], []
    for outer in outers(results):
        parts = [inner_scored(results, name, outer) for name in names]
        other = inner_scored(results, PROBE, outer)
        if other is not None and all(part is not None for part in parts):
            own.append(total([part for part in parts if part is not None]))
            probe.append(scores(other).auc)
    if own:
        auc, loss, accuracy = np.array([scores(part) for part in own]).T
        print(
            f"| {' + '.join(names)} | {shown('roc_auc', float(auc.mean()))} "
            f"| {loss.mean():.3f} | {shown('accuracy', float(accuracy.mean()))} "
            f"| {float((auc - probe).mean()):+.3f} | {len(own)} of 5 |"
        )


def inner_scored(results: Results, name: str, outer: int) -> Scored | None:
    """The clips of an outer training part, sorted by name, over their temperature."""
    lines = inner_lines(results, name, outer, 0)
    if lines is None:
        return None
    part = in_order(results, lines)
    return part._replace(logits_N=part.logits_N / part.temperature)


def in_order(results: Results, lines: Sequence[Line]) -> Scored:
    """The clips of some lines, sorted by their names."""
    names = np.array([name for line in lines for name in line["clips"]])
    order = np.argsort(names)
    return Scored(*(array[order] for array in scored(results, lines)))


def total(parts: Sequence[Scored]) -> Scored:
    """The mean of the parts' logits, which are of the same clips."""
    return parts[0]._replace(
        logits_N=np.mean([part.logits_N for part in parts], axis=0)
    )


def print_outer(names: Sequence[str], by_seed: dict[int, Results]) -> None:
    """A row for each split seed with all outer folds, and the difference from the probe."""
    pairs = []
    for split_seed, results in by_seed.items():
        own = outer_folds(names, results, by_seed[0])
        probe = outer_folds((PROBE,), results, by_seed[0])
        if own is not None and probe is not None:
            pairs.append((own, probe))
            print(outer_row(f"{' + '.join(names)}, split seed {split_seed}", own))
    if pairs and names != (PROBE,):
        print(difference_row(f"{' + '.join(names)}, less {PROBE}", pairs))


def outer_folds(
    names: Sequence[str], results: Results, first: Results
) -> OuterFolds | None:
    """All outer folds of a sum; None unless all are tested.

    A part's temperature is that of its own inner folds; where an adaptation has none on
    these folds, the geometric mean of those on the folds of split seed 0.
    """
    folds = []
    for outer in outers(results):
        parts = []
        for name in names:
            line = results.lines.get((name, outer, None, 0))
            if line is None:
                return None
            part = in_order(results, [line])
            scale = temperature(name, outer, results, first)
            parts.append(part._replace(logits_N=part.logits_N / scale))
        folds.append(total(parts))
    order = np.argsort(
        [
            clip
            for outer in outers(results)
            for clip in sorted(results.lines[names[0], outer, None, 0]["clips"])
        ]
    )
    columns = zip(*folds, strict=True)
    together = Scored(*(np.concatenate(column)[order] for column in columns))
    return OuterFolds(together, [scores(part).auc for part in folds])


def temperature(name: str, outer: int, results: Results, first: Results) -> float:
    """By inner logits of this outer part, else the mean of those of the first folds."""
    lines = inner_lines(results, name, outer, 0)
    if lines is not None:
        return scored(results, lines).temperature
    known = [inner_lines(first, name, number, 0) for number in outers(first)]
    values = [scored(first, lines).temperature for lines in known if lines is not None]
    return float(np.exp(np.mean(np.log(values))))


def difference_row(label: str, pairs: Sequence[tuple[OuterFolds, OuterFolds]]) -> str:
    """Mean over split seeds of one less the other, on the same resamples of groups."""
    cells = []
    for name in SHOWN:
        gain = np.mean([own.values[name] - other.values[name] for own, other in pairs])
        gain_R = np.mean(
            [own.resampled[name] - other.resampled[name] for own, other in pairs],
            axis=0,
        )
        ends = interval(gain_R, pairs[0][0].together.group_N) or (np.nan, np.nan)
        cells.append(f"{gain:+.3f} ({ends[0]:+.3f} to {ends[1]:+.3f})")
    folds = np.mean([np.subtract(own.auc_O, other.auc_O) for own, other in pairs])
    losses = [losses_of(own) - losses_of(other) for own, other in pairs]
    more = f"{folds:+.3f}", f"{np.mean(losses):+.3f}"
    return f"| {' | '.join([label, *cells, *more])} |".replace("-", "−")


def losses_of(folds: OuterFolds) -> float:
    """The log loss of all outer folds together."""
    return log_loss(folds.together.logits_N, folds.together.labels_N)


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
