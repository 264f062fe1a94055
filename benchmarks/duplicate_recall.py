"""Recall and precision of near-duplicate search on copies of a data set's own clips.

    python -m benchmarks.duplicate_recall --dataset-path DATA --cache-dir CACHE

Draws clips, writes a copy of each kind (benchmarks/copies.py) of them, and searches all
clips and copies together. A pair is true when both come from one clip; pairs of two
different originals are counted by themselves: they may be true, look at them.
"""

import json
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from benchmarks.copies import KINDS, write_copies
from vd.config import DataConfig, DecodeConfig
from vd.console import track
from vd.data.catalog import identify
from vd.data.fingerprints import fingerprint_videos
from vd.data.manifest import Video, read_manifest
from vd.data.near_duplicates import find_pairs


@dataclass(frozen=True)
class Recall:
    """Measure on one data set; a JSON line a kind of copy, then one of other pairs."""

    data: DataConfig
    clips: int = 100
    """Clips to make copies of."""
    seed: int = 1
    """Seed of the choice of clips and of the copies."""

    def __call__(self) -> None:
        """Make the copies in a temporary folder, search, count."""
        cache = self.data.cache_dir
        videos = identify(read_manifest(self.data).videos, cache)
        draw = np.random.default_rng(self.seed)
        chosen = draw.choice(len(videos), min(self.clips, len(videos)), replace=False)
        with tempfile.TemporaryDirectory() as folder:
            kinds, copies = self._copies(
                [videos[i] for i in sorted(chosen)], Path(folder)
            )
            everything = [*videos, *identify(copies, cache)]
            _, made = fingerprint_videos(everything, self.data, DecodeConfig())
        pairs = find_pairs(made)
        source = {v.id: kinds.get(v.name, ("", v.name))[1] for v in everything}
        kind_of = {v.id: kinds.get(v.name, ("original", ""))[0] for v in everything}
        found: Counter[str] = Counter()
        scene: Counter[str] = Counter()
        other: dict[str, float] = {}
        lowest: dict[str, float] = {}
        for pair in pairs:
            same = source[pair.first] == source[pair.second]
            both = {kind_of[pair.first], kind_of[pair.second]}
            if same and "original" in both:
                (kind,) = both - {"original"}
                (found if pair.kind == "duplicate" else scene)[kind] += 1
                if pair.kind == "duplicate":
                    lowest[kind] = min(pair.similarity, lowest.get(kind, 1.0))
            elif not same and pair.kind == "duplicate":
                names = " ".join(sorted((source[pair.first], source[pair.second])))
                other[names] = max(pair.similarity, other.get(names, 0.0))
        for kind in KINDS:
            total = sum(kind == made_kind for made_kind, _ in kinds.values())
            print(json.dumps({"kind": kind, "copies": total, "found": found[kind], "as_same_scene": scene[kind], "lowest_similarity": round(lowest.get(kind, 0.0), 3)}))  # fmt: skip
        print(json.dumps({"pairs_of_other_clips": {name: round(other[name], 3) for name in sorted(other)}}))  # fmt: skip

    def _copies(
        self, chosen: list[Video], folder: Path
    ) -> tuple[dict[str, tuple[str, str]], list[Video]]:
        """Kind and original of each copy by its name, and the copies."""
        kinds, copies = {}, []
        with track("copies", len(chosen), "clips") as ticker:
            for number, video in enumerate(chosen):
                target = folder / str(number)
                target.mkdir()
                for kind, path in write_copies(video.path, target, self.seed + number):
                    name = f"{number}/{path.name}"
                    kinds[name] = kind, video.name
                    copies.append(replace(video, path=path, name=name, id=""))
                ticker.advance()
        return kinds, copies


if __name__ == "__main__":
    tyro.cli(Recall, config=(tyro.conf.OmitArgPrefixes,))()
