"""Study: from how many clips on does the BiLSTM pay? Trainings of `heads.py` on subsamples.

    python experiments/heads_few.py --dataset-path scfd/manifest.csv --cache-dir CACHE --clips 40 80 160
    python experiments/heads_few.py --dataset-path hockey/manifest.csv --cache-dir CACHE --clips 60 120 240 480
    python experiments/heads_few.py --dataset-path scfd/manifest.csv --table

The linear path alone, and with the BiLSTM as a correction of full rate, which begins at 0.
Each outer training part is cut to whole groups, the rarer class first, until it has so many
clips; a smaller sample lies in a larger one. All have the same number of steps. The outer
fold tests them; nothing is chosen by it.

Source:   docs/results.md, Heads: on the whole of these sets the BiLSTM adds nothing
Cost:     30 seconds of a CPU a training with the BiLSTM, of which a size has five
Promised: nothing
Measured: not yet
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import heads
import numpy as np
import tyro
from heads_lines import Results, read_results
from heads_table import scored, spread

from vd.cli import run_command
from vd.data.manifest import Video
from vd.errors import VdError
from vd.metrics.binary import roc_auc

LINES = Path(__file__).with_suffix(".jsonl")
STEPS = 240  # as 40 epochs of six batches
ALONE, BESIDE = "linear, change", "correction, change"
HEAD = """\
| clips trained on | ROC AUC, linear path alone | with the BiLSTM | difference | folds above |
|---|---|---|---|---|"""


def main(
    dataset_path: Path,
    cache_dir: Path = Path("cache"),
    clips: tuple[int, ...] = (),
    parts: tuple[int, ...] = tuple(range(heads.OUTER)),
    table: bool = False,
    lines: Path = LINES,
) -> int:
    """Run what is missing of these numbers of clips, then print the table.

    `parts` are the outer folds to work on; `table` runs nothing.
    """
    dataset = dataset_path.parent.name if dataset_path.suffix else dataset_path.name
    if not table:
        videos, data = heads.load(dataset_path, cache_dir)
        heads.start_lines(lines, dataset, videos, data.store.fingerprint)
        for part in heads.outer_parts(videos):
            for count in clips if part.outer in parts else ():
                few = part._replace(train=subsample(part.train, count))
                for name in (ALONE, BESIDE):
                    setting = heads.SETTINGS[name].changed(epochs=epochs(few.train))
                    label = f"{name}, {count} clips"
                    heads.run_parts(lines, dataset, label, [few], data, 0, setting)
    results = read_results(lines, dataset)
    if results is None:
        raise VdError(f"{lines} has no line of {dataset}; run without --table.")
    print("\n".join([HEAD, *rows(results)]))
    return 0


def subsample(videos: Sequence[Video], clips: int) -> list[Video]:
    """Whole groups of the rarer class so far, in a random order, until there are `clips`."""
    groups: dict[str, list[Video]] = {}
    for video in videos:
        groups.setdefault(video.group or video.id, []).append(video)
    names = np.random.default_rng(heads.SPLIT_SEED).permutation(sorted(groups)).tolist()
    chosen: list[Video] = []
    while names and len(chosen) < clips:
        rarer = int(2 * sum(video.label for video in chosen) < len(chosen))
        has_it = (n for n in names if any(v.label == rarer for v in groups[n]))
        name = next(has_it, names[0])
        names.remove(name)
        chosen += groups[name]
    return chosen


def epochs(train: Sequence[Video]) -> int:
    """So many that there are at least STEPS steps of 32 clips."""
    return -(-STEPS // max(len(train) // 32, 1))


def rows(results: Results) -> Iterator[str]:
    """A row a number of clips: means over the outer folds that both have tested."""
    labels = [name for name, *_ in results.lines if name.startswith(ALONE)]
    counts = {int(label.removeprefix(ALONE).split()[1]) for label in labels}
    for count in sorted(counts):
        pairs = []
        for outer in range(heads.OUTER):
            keys = [(f"{n}, {count} clips", outer, None, 0) for n in (ALONE, BESIDE)]
            if all(key in results.lines for key in keys):
                pairs.append([results.lines[key] for key in keys])
        if len(pairs) < 2:
            continue
        both = [[scored(results, [line]) for line in pair] for pair in pairs]
        auc_Ox2 = np.array([[roc_auc(p.labels_N, p.logits_N) for p in o] for o in both])
        gain_O = auc_Ox2[:, 1] - auc_Ox2[:, 0]
        clips = np.mean([pair[0]["train_clips"] for pair in pairs])
        alone, beside = (spread(column) for column in auc_Ox2.T.astype(float))
        yield (
            f"| {clips:.0f} | {alone} | {beside} | {spread(gain_O, '+')} | "
            f"{np.sum(gain_O > 0)} of {len(gain_O)} |"
        )


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
