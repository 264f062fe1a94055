"""The feature store at full size: opening, random reads cold and warm, batches, growth.

    python -m benchmarks.store --videos 31209 --folder SCRATCH

Synthetic records of real shape: 5 s at 8 frames a second, three streams, float16, one view.
The peer `npy_files` is a folder of one .npy a video, read with numpy.load. Lines without a
peer's figure are null there.

- open: seconds to open the store, every index read; the peer lists its folder
- read_cold, read_warm: milliseconds a random read of one view, after the operating system
  was asked to drop the files, and again
- batch_warm: milliseconds a batch of 64 × 32 frames, through Grain, from the files
- add_ten: seconds to add ten videos, to this store and (as peer) to an empty one
- bytes: of a video on the disk; the peer is the size of its numbers
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import tyro

from benchmarks.scratch import scratch
from vd.config import TrainingConfig
from vd.data.manifest import Video
from vd.data.outcome import Outcome
from vd.features.shards import Part
from vd.features.store import FeatureStore
from vd.training.batches import training_batches
from vd.training.feature_set import FeatureSet

FRAMES, STREAMS, DIM, CHUNK = 40, 3, 1280, 64
_BATCHES = 40  # measured, of 64 videos each
USED = Outcome("used", "", 125, 320, 240, 25.0, 5.0, "h264")


def main(folder: Path, videos: int = 31_209, reads: int = 500) -> None:
    """A JSON line a measure; what is written into `folder` is removed at the end."""
    if videos < (_BATCHES + 1) * 64:
        sys.exit(f"--videos {videos}: {(_BATCHES + 1) * 64} fill the batches measured")
    names = [f"{i:064x}" for i in range(videos)]
    with scratch(folder):
        fill(open_store(folder), names)
        draw = np.random.default_rng(1)
        drawn = [names[i] for i in draw.choice(videos, min(reads, videos), False)]
        files = write_npy(folder / "npy", drawn)
        measure_open(folder)
        measure_reads(folder, drawn, files)
        measure_batches(open_store(folder), names)
        measure_growth(folder)
        stored = sum(f.stat().st_size for f in shards(folder))
        line(
            "bytes", "bytes/video", stored / videos, numbers(0).features_VxFxSxD.nbytes
        )


def open_store(folder: Path) -> FeatureStore:
    """The store in a folder."""
    return FeatureStore(folder, {"made": "up"}, STREAMS, DIM)


def numbers(seed: int) -> Part:
    """Features of a video, one view, and their seconds."""
    draw = np.random.default_rng(seed)
    features = draw.random((1, FRAMES, STREAMS, DIM), np.float32)
    return Part(features.astype(np.float16), np.arange(FRAMES) / 8)


def fill(store: FeatureStore, names: list[str]) -> None:
    """Write all videos, 64 a shard; their numbers repeat, for speed of making."""
    made = [numbers(seed) for seed in range(CHUNK)]
    for start in range(0, len(names), CHUNK):
        rows = zip(names[start : start + CHUNK], made, strict=False)
        for name, value in rows:
            store.add(name, USED, "none", [value])
        store.finish()
    store.write_metadata()


def write_npy(folder: Path, names: list[str]) -> list[Path]:
    """One file a video."""
    folder.mkdir(parents=True)
    files = [folder / f"{name}.npy" for name in names]
    for seed, file in enumerate(files):
        np.save(file, numbers(seed % CHUNK).features_VxFxSxD[0])
    return files


def shards(folder: Path) -> list[Path]:
    """The store's shards."""
    return sorted(folder.glob("features/*/*/features-videos.array_record-?????"))


def measure_open(folder: Path) -> None:
    """Opening, in seconds."""
    ours = [seconds(lambda: open_store(folder)) for _ in range(5)]
    theirs = [seconds(lambda: list(os.scandir(folder / "npy"))) for _ in range(5)]
    line("open", "s", median(ours), median(theirs), shards=len(shards(folder)))


def measure_reads(folder: Path, names: list[str], files: list[Path]) -> None:
    """Random reads in milliseconds, the page cache cold, then warm."""
    store = open_store(folder)
    store.read(names[0], 0)  # opens the files
    for state in ("cold", "warm"):
        if state == "cold":
            drop([*shards(folder), *files])
        ours = [seconds(partial(store.read, name, 0)) for name in names]
        theirs = [seconds(partial(np.load, file)) for file in files]
        line(f"read_{state}", "ms", 1000 * median(ours), 1000 * median(theirs))


def measure_batches(store: FeatureStore, names: list[str]) -> None:
    """Batches from the files, in milliseconds; read once before, so warm."""
    videos = [
        Video(Path(name), name, i % 2, "train", "", name)
        for i, name in enumerate(names[:4096])
    ]
    config = TrainingConfig(epochs=1)
    data = FeatureSet(videos, store, share=0.0)  # as if too large for memory
    for _ in range(2):
        made = iter(training_batches(data, config, 32, 64, 0))
        next(made)
        taken = [seconds(partial(next, made)) for _ in range(_BATCHES)]
    line("batch_warm", "ms", 1000 * median(taken), None)


def measure_growth(folder: Path) -> None:
    """Adding ten videos to the full store and to an empty one, in seconds."""
    taken = []
    for place in (folder, folder / "empty"):
        chunk = [numbers(i) for i in range(10)]

        def add(place: Path = place, chunk: list[Part] = chunk) -> None:
            store = open_store(place)
            for number, value in enumerate(chunk):
                store.add(f"new{number}", USED, "none", [value])
            store.finish()
            store.write_metadata()

        taken.append(seconds(add))
    line("add_ten", "s", *taken)


def drop(files: Iterable[Path]) -> None:
    """Ask the operating system to forget what it has of these files."""
    os.sync()
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def seconds(call: Callable[[], object]) -> float:
    """Time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def line(
    measure: str, unit: str, ours: float, theirs: float | None, **more: object
) -> None:
    """Print a line; less is better, so the ratio is theirs to ours."""
    values = {
        "benchmark": "store",
        "peer": "npy_files",
        "measure": measure,
        "unit": unit,
        "ours": round(ours, 4),
        "theirs": theirs and round(theirs, 4),
        "ratio": theirs and round(theirs / ours, 3),
    }
    print(json.dumps(values | more), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
