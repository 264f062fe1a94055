"""Search for near-duplicate hashes: vd's inverted file against brute force, as sets grow.

    python -m benchmarks.near_duplicates

Hashes are random but for one in twenty, which differs from another by 12 of its 128 bits.
Each line: hashes searched a second, every hash a query, and the share of the planted pairs
that was found. Brute force is faiss's exhaustive binary index, on as many cores.
"""

import json
import time
from statistics import median

import faiss
import numpy as np

from vd.videos.duplicates import neighbours

SIZES = (1_000, 4_000, 16_000, 64_000)
REPEATS = 3
DISTANCE, NEIGHBOURS = 24, 32


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


def brute_force(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `neighbours` gives, by looking at all pairs."""
    index = faiss.IndexBinaryFlat(128)
    index.add(codes)
    distances, columns = index.search(codes, NEIGHBOURS)
    near = distances <= DISTANCE
    return np.nonzero(near)[0], columns[near]


def main() -> None:
    """A JSON line a size."""
    for count in SIZES:
        codes, pairs = hashes(count)
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        found = {}
        for _ in range(REPEATS):
            for name, taken in seconds.items():
                began = time.perf_counter()
                rows, columns = (
                    neighbours(codes, codes, DISTANCE)
                    if name == "ours"
                    else brute_force(codes)
                )
                taken.append(time.perf_counter() - began)
                found[name] = set(zip(rows.tolist(), columns.tolist(), strict=True))
        ours, theirs = (count / median(seconds[name]) for name in ("ours", "theirs"))
        planted = [tuple(pair) for pair in pairs.tolist()]
        line = {
            "benchmark": "near_duplicates",
            "peer": "brute_force",
            "unit": "hashes/s",
            "ours": round(ours),
            "theirs": round(theirs),
            "ratio": round(ours / theirs, 3),
            "hashes": count,
            "found_ours": sum(pair in found["ours"] for pair in planted) / len(planted),
            "found_theirs": sum(p in found["theirs"] for p in planted) / len(planted),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
