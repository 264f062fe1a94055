"""Search for near duplicates: vd's inverted file against brute force, as sets grow.

    python -m benchmarks.near_duplicates
    python -m benchmarks.near_duplicates --clips 1000 4000 16000 31209

The first form searches hashes. They are random but for one in twenty, which differs from
another by 12 of its 128 bits. Each line: hashes searched a second, every hash a query, and
the share of the planted pairs that was found. Brute force is faiss's exhaustive binary
index, on as many cores.

The second form times the whole search among fingerprints: synthetic clips of 5 s at 8
frames a second, smooth shapes that move, and one in a hundred again: mirrored, without its
first half second, with noise of 4 grey levels. Brute force takes the same steps after an exhaustive search; above `MOST_BRUTE`
clips it is left out, and null.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import faiss
import numpy as np
import tyro

from vd.data import hashes as data_hashes
from vd.data import near_duplicates as duplicates
from vd.data.fingerprints import Fingerprint
from vd.data.hashes import neighbours
from vd.data.near_duplicates import find_pairs

SIZES = (1_000, 4_000, 16_000, 64_000)
REPEATS = 3
DISTANCE, NEIGHBOURS = 24, 32
FRAMES, TRIMMED, NOISE = 40, 4, 4.0
MOST_BRUTE = 4_000


def main(clips: tuple[int, ...] = ()) -> None:
    """A JSON line a size.

    Args:
        clips: Numbers of synthetic clips to search; without them hashes are searched.
    """
    for count in clips:
        search_clips(count)
    for count in SIZES if not clips else ():
        search_hashes(count)


def search_hashes(count: int) -> None:
    """Print the line of `count` random hashes."""
    codes, pairs = hashes(count)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    found = {}
    for _ in range(REPEATS):
        for name, search in (("ours", neighbours), ("theirs", brute_force)):
            taken, near = timed(partial(search, codes, codes, np.full(count, DISTANCE)))
            seconds[name].append(taken)
            found[name] = set(zip(*(column.tolist() for column in near), strict=True))
    planted = [tuple(pair) for pair in pairs.tolist()]
    print_line(
        count,
        "hashes",
        median(seconds["ours"]),
        median(seconds["theirs"]),
        {
            f"found_{name}": sum(pair in near for pair in planted) / len(planted)
            for name, near in found.items()
        },
    )


def hashes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random hashes, (count, 16) bytes, and the planted pairs, (count / 20, 2)."""
    draw = np.random.default_rng(seed)
    codes = draw.integers(0, 256, (count, 16)).astype(np.uint8)
    pairs = draw.permutation(count)[: count // 20 * 2].reshape(-1, 2)
    for first, second in pairs:
        codes[second] = codes[first]
        for bit in draw.choice(128, 12, replace=False):
            codes[second, bit // 8] ^= 1 << bit % 8
    return codes, pairs


def brute_force(
    codes: np.ndarray, queries: np.ndarray, distances_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What `neighbours` gives, by looking at all pairs."""
    index = faiss.IndexBinaryFlat(128)
    index.add(codes)
    distances, columns = index.search(queries, min(NEIGHBOURS, len(codes)))
    near = distances <= distances_N[columns]
    return np.nonzero(near)[0], columns[near]


def search_clips(count: int) -> None:
    """Print the line of `count` synthetic clips, one run of each search."""
    made = synthetic(count)
    planted = {(f"{i}", f"{i} copy") for i in range(0, count, 100)}
    seconds, pairs = timed(lambda: find_pairs(made))
    found = {"found_ours": share_found(planted, pairs), "other_pairs": len(pairs) - len(planted)}  # fmt: skip
    theirs = None
    if count <= MOST_BRUTE:
        with mock.patch.object(data_hashes, "neighbours", brute_force):
            theirs, pairs = timed(lambda: find_pairs(made))
        found["found_theirs"] = share_found(planted, pairs)
    print_line(count, "clips", seconds, theirs, found)


def synthetic(count: int, seed: int = 0) -> dict[str, Fingerprint]:
    """Fingerprints of clips by number, and of the copies."""
    draw = np.random.default_rng(seed)
    stretch = np.kron(np.eye(6), np.ones((3, 1)))[:16]
    made = {}
    for i in range(count):
        moves = np.cumsum(0.3 * draw.normal(size=(FRAMES, 6, 6)), axis=0)
        frames = stretch @ (draw.normal(size=(6, 6)) + moves) @ stretch.T
        small = np.clip(128 + 40 * frames, 0, 255).astype(np.uint8)
        made[f"{i}"] = Fingerprint(small, 128.0, 0.0)
        if i % 100 == 0:
            noisy = frames[TRIMMED:, :, ::-1] * 40 + 128
            noisy = noisy + NOISE * draw.normal(size=noisy.shape)
            copy = np.clip(noisy, 0, 255).astype(np.uint8)
            made[f"{i} copy"] = Fingerprint(copy, 128.0, 0.0)
    return made


def share_found(planted: set[tuple[str, str]], pairs: list[duplicates.Pair]) -> float:
    """The share of planted pairs that were found as the same footage."""
    found = {p[:2] for p in pairs if p.kind == "duplicate"}
    return len(planted & found) / len(planted)


def timed(search: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a search took, and what it found."""
    began = time.perf_counter()
    found = search()
    return time.perf_counter() - began, found


def print_line(
    count: int, what: str, ours: float, theirs: float | None, found: dict[str, Any]
) -> None:
    """One JSON line; rates are of `what` a second."""
    line = {
        "benchmark": "near_duplicates",
        "peer": "brute_force",
        "unit": f"{what}/s",
        "ours": round(count / ours),
        "theirs": theirs and round(count / theirs),
        "ratio": theirs and round(theirs / ours, 3),
        what: count,
        "seconds": round(ours, 2),
    }
    print(json.dumps(line | found), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
