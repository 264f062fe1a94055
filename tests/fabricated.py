"""Feature sets made of numbers, for tests of training that need no video."""

from pathlib import Path

import numpy as np

from vd.features.store import Extracted, FeatureStore
from vd.training.batches import FeatureSet
from vd.videos.decode import Outcome
from vd.videos.manifest import Video

STREAMS, DIM = 2, 6


def make_videos(count, prefix="v"):
    """Videos of alternating class."""
    return [
        Video(
            Path(f"{prefix}{i}.mp4"),
            f"{prefix}{i}.mp4",
            i % 2,
            "train",
            "",
            f"{prefix}{i}",
        )
        for i in range(count)
    ]


def features_of(video, frames, views=2, signal=1.0):
    """Random features, different in every view, whose mean tells the class."""
    rng = np.random.default_rng([len(video.id), *video.id.encode()])
    features = rng.normal(size=(views, frames, STREAMS, DIM))
    features[..., 0] += signal * (2 * video.label - 1)
    return features.astype(np.float16)


def open_store(cache_dir, **description):
    return FeatureStore(Path(cache_dir), {"made": "up", **description}, STREAMS, DIM)


def make_set(cache_dir, videos, frames=lambda i: 5 + i % 4, signal=1.0):
    """A feature set of `videos`, stored and read back."""
    store = open_store(cache_dir)
    chunk = [
        Extracted(
            video.id, Outcome("used"), features_of(video, frames(i), signal=signal)
        )
        for i, video in enumerate(videos)
        if video.id not in store.rows
    ]
    if chunk:
        store.add(chunk, "test")
    return FeatureSet(videos, store)
