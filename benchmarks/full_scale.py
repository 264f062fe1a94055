"""Training at full scale on a CPU: an epoch of 341 steps with evaluation, and growth.

    python -m benchmarks.full_scale --folder SCRATCH

Synthetic records of real shape in the real store: 5 s at 8 frames a second, three streams,
float16, 21,845 videos to train on and 4,679 to validate on, and four times as many for
growth. Batch 64, float32, the settings of `optimized`.

- epoch: seconds of an epoch by the training loop itself, evaluation included; the peer is
  the recipe's nine minutes on two GPUs
- input_wait, checkpoint: shares of the steps' time and of the epoch's; the peers are the
  bars, 0.02 and 0.01
- memory: GiB at the peak; no peer
- growth: milliseconds a step on sets of these sizes, `--steps` of them in each of
  `--rounds` rounds in which the sizes take turns, and the seconds of an epoch's steps that
  follow from them; the peer is size 1. `read` says whether a set is held in memory or read at
  random from files that were dropped from the page cache before
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import tyro

from benchmarks.scratch import scratch
from benchmarks.store import drop, fill, open_store, seconds, shards
from vd.config import Config, DataConfig, ModelConfig, TrainingConfig
from vd.data.manifest import Video
from vd.devices import training_devices
from vd.features.store import FeatureStore
from vd.models.detector import Detector
from vd.models.head import init_params
from vd.training.batches import training_batches
from vd.training.checkpoints import Checkpoints
from vd.training.feature_set import TRAINED_SHARE, FeatureSet
from vd.training.log import read_metrics
from vd.training.loop import train
from vd.training.optimizer import make_optimizer
from vd.training.step import (
    Batch,
    StepMetrics,
    TrainState,
    make_train_step,
    step_numbers,
)

BATCH = 64
UNCOUNTED = 8  # steps of a round, for which batches were made ahead
RECIPE_SECONDS = 540


def main(
    folder: Path,
    videos: int = 21_845,
    validation: int = 4_679,
    sizes: tuple[float, ...] = (0.25, 0.5, 1, 2, 4),
    steps: int = 40,
    rounds: int = 3,
    epochs: int = 1,
    memory_share: float = TRAINED_SHARE,
) -> None:
    """A JSON line a measure; what is written into `folder` is removed at the end.

    `memory_share` of the machine's memory is what the set to train on may take, a quarter
    of it that to validate on; 0 reads all at random. With 0 `epochs` growth alone is measured.
    """
    if 1 not in sizes or min(sizes) * videos < BATCH:
        sys.exit(f"--sizes must name 1, and each have {BATCH} of --videos at least")
    total = validation + int(max(sizes) * videos)
    made = [
        Video(Path(str(i)), str(i), i % 2, "train", "", f"{i:064x}")
        for i in range(total)
    ]
    with scratch(folder):
        store = open_store(folder)
        fill(store, [video.id for video in made])
        val, train_videos = made[:validation], made[validation:]
        if epochs:
            first = train_videos[:videos]
            measure_epoch(folder, store, first, val, epochs, memory_share)
        counts = {size: int(size * videos) for size in sizes}
        measure_growth(folder, store, train_videos, counts, steps, rounds, memory_share)


def settings(folder: Path, epochs: int) -> Config:
    """Those of `optimized`, without mixed precision."""
    return Config(
        DataConfig(folder),
        model=ModelConfig(mixed_precision=False),
        training=TrainingConfig(epochs=epochs, warmup_epochs=0),
    )


def measure_epoch(
    folder: Path,
    store: FeatureStore,
    videos: Sequence[Video],
    validation: Sequence[Video],
    epochs: int,
    share: float,
) -> None:
    """Whole epochs by the training loop, from files that the page cache has dropped."""
    devices = training_devices(None, BATCH)
    saved: list[float] = []
    save = Checkpoints.save

    def timed(*arguments: Any) -> None:
        saved.append(seconds(lambda: save(*arguments)))

    drop(shards(folder))
    reset_peak()
    sets = (
        FeatureSet(videos, store, devices, share),
        FeatureSet(validation, store, share=share / 4),
    )
    run_dir = folder / "run"
    run_dir.mkdir()
    with mock.patch.object(Checkpoints, "save", timed):
        train(settings(folder, epochs), *sets, run_dir, devices, BATCH)
    rows = read_metrics(run_dir)
    taken = median(row["seconds"] for row in rows)
    wait = median(row["input_wait_fraction"] for row in rows)
    facts = {"steps": len(videos) // BATCH, "read": how_read(sets[0])}
    line("epoch", "recipe", "s", taken, RECIPE_SECONDS, **facts)
    line("input_wait", "bar", "share", wait, 0.02)
    line("checkpoint", "bar", "share", median(saved) / taken, 0.01)
    line("memory", None, "GiB", peak_bytes() / 2**30, None)


def measure_growth(
    folder: Path,
    store: FeatureStore,
    videos: Sequence[Video],
    counts: dict[float, int],
    steps: int,
    rounds: int,
    share: float,
) -> None:
    """Steps on sets of several sizes, which take turns."""
    devices = training_devices(None, BATCH)
    sets = {
        size: FeatureSet(videos[:count], store, devices, share)
        for size, count in counts.items()
    }
    drop(shards(folder))
    config, dim = settings(folder, epochs=100), sets[1].dim
    optimizer = make_optimizer(config.training)
    numbers, compiled = step_numbers(config, devices), make_train_step(config, devices)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        return compiled(state, batch, numbers)

    def first_state() -> TrainState:
        params = init_params(Detector(config.model), dim, jax.random.key(0))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    runs = {
        size: timed_rounds(config, train_step, first_state(), data, steps, len(devices))
        for size, data in sets.items()
    }
    taken: dict[float, list[tuple[float, float]]] = {size: [] for size in sets}
    for _ in range(rounds):
        for size, run in runs.items():
            taken[size].append(next(run))
    alone = median(second for second, _ in taken[1])
    for size, results in taken.items():
        second, wait = (median(values) for values in zip(*results, strict=True))
        facts = {
            "size": size,
            "epoch_seconds": round(second * (counts[size] // BATCH), 1),
            "input_wait": round(wait, 4),
            "read": how_read(sets[size]),
        }
        line("growth", "size 1", "ms/step", 1000 * second, 1000 * alone, **facts)


def timed_rounds(
    config: Config,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]],
    state: TrainState,
    data: FeatureSet,
    steps: int,
    devices: int,
) -> Iterator[tuple[float, float]]:
    """Seconds a step, and the share of them waiting for input, a round at a time."""
    made = training_batches(data, config.training, 32, BATCH, 0, devices)
    while True:
        late, waited = None, 0.0
        for number in range(UNCOUNTED + steps):
            if number == UNCOUNTED:
                jax.block_until_ready(state)
                began, waited = time.perf_counter(), 0.0
            asked = time.perf_counter()
            batch = next(made)
            waited += time.perf_counter() - asked
            state, metrics = train_step(state, batch)
            jax.block_until_ready(late)  # a step late, as the loop does
            late = metrics
        jax.block_until_ready(state)
        taken = time.perf_counter() - began
        yield taken / steps, waited / taken


def how_read(data: FeatureSet) -> str:
    """Where a set's features come from."""
    if data._take is not None:
        return "on the device"
    return "at random" if data._memory is None else "in memory"


def reset_peak() -> None:
    """Forget the peak of this process's memory so far."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory that was resident since."""
    status = Path("/proc/self/status").read_text().split()
    return 1024 * int(status[status.index("VmHWM:") + 1])


def line(
    measure: str,
    peer: str | None,
    unit: str,
    ours: float,
    theirs: float | None,
    **more: object,
) -> None:
    """Print a line; less is better, so the ratio is theirs to ours."""
    values = {
        "benchmark": "full_scale",
        "peer": peer,
        "measure": measure,
        "unit": unit,
        "ours": round(ours, 4),
        "theirs": theirs and round(theirs, 4),
        "ratio": theirs and round(theirs / max(ours, 1e-9), 3),
    }
    print(json.dumps(values | more), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
