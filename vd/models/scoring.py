"""Features to logits: the one function behind validation, evaluation and prediction.

It runs on one device at one batch shape. XLA results may differ in the last bits between
batch shapes, but not between the rows of one shape. So a clip's logit does not depend on the
other clips in its batch, nor on the devices that trained.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float16, Float64

from vd.console import check_interrupt
from vd.devices import own_numerics
from vd.features.sampling import TimedFeatures, scoring_windows, windows_of
from vd.models.head import Head, Params, apply

SCORING_BATCH = 32  # part of the run format: another size changes the last bits


class Windows(NamedTuple):
    """Windows of several videos, padded to one length, and the video of each."""

    features_BxTxD: Float16[np.ndarray, "B T D"]
    mask_BxT: Float[np.ndarray, "B T"]
    owner_B: np.ndarray


def score(
    head: Head, params: Params, views: Iterable[Sequence[Float16[np.ndarray, "F D"]]]
) -> Float64[np.ndarray, " N"]:
    """Logit of each video: the mean over its views (usually one) and their windows."""
    return score_batches(head, params, window_batches(views, head.config.clip_frames))


def sliding_logits(
    head: Head,
    params: Params,
    videos: Iterable[TimedFeatures],
    length: float,
    stride: float,
) -> list[Float64[np.ndarray, " W"]]:
    """Logits of each video's windows of `length` seconds, each `stride` seconds."""
    counts = list[int]()

    def windows() -> Iterator[list[Float16[np.ndarray, "F D"]]]:
        for video in videos:
            own = windows_of(video, length, stride, head.config.clip_frames)
            counts.append(len(own))
            for features_LxD in own:
                yield [features_LxD]

    logit_W = score(head, params, windows())
    ends = np.cumsum(counts)[:-1]
    return np.split(logit_W, ends) if counts else []


def peaks(windows: Sequence[Float64[np.ndarray, " W"]]) -> Float64[np.ndarray, " N"]:
    """The highest logit of each video's windows."""
    return np.array([logit_W.max() for logit_W in windows], np.float64)


@own_numerics()
def score_batches(
    head: Head, params: Params, batches: Iterable[Windows]
) -> Float64[np.ndarray, " N"]:
    """Logit of each video of `window_batches`; the arrays may be on the device already."""
    function = _compiled(head)
    params = jax.device_put(params, scoring_device())
    owners, logits = [np.zeros(0, int)], [np.zeros(0, np.float32)]
    for batch in batches:
        check_interrupt()
        owners.append(batch.owner_B)
        logits.append(function(params, batch.features_BxTxD, batch.mask_BxT))
        jax.block_until_ready(logits[-2])  # while this batch is under way
    owner_M, logit_M = np.concatenate(owners), np.concatenate(logits)
    real_M = owner_M >= 0  # else padding
    sum_N = np.bincount(owner_M[real_M], logit_M[real_M].astype(np.float64))
    return sum_N / np.bincount(owner_M[real_M])


def scoring_device() -> jax.Device:
    """The one device that scores."""
    return jax.local_devices()[0]


@cache
def _compiled(head: Head) -> Callable[[Params, Any, Any], Any]:
    """The compiled scoring of a head; it runs where the parameters are."""
    return jax.jit(partial(apply, head))


def window_batches(
    views: Iterable[Sequence[Float16[np.ndarray, "F D"]]], clip_frames: int
) -> Iterator[Windows]:
    """Batches of SCORING_BATCH windows; the last is filled with rows that are not scored."""
    windows = (
        (owner, features_FxD[frames])
        for owner, views_of_one in enumerate(views)
        for features_FxD in views_of_one
        for frames in scoring_windows(len(features_FxD), clip_frames)
    )
    while rows := list(islice(windows, SCORING_BATCH)):
        yield _stack(rows, clip_frames)


def _stack(rows: Sequence[tuple[int, np.ndarray]], clip_frames: int) -> Windows:
    """Pad windows to `clip_frames`, and their number to SCORING_BATCH."""
    dim = rows[0][1].shape[-1]
    features = np.zeros((SCORING_BATCH, clip_frames, dim), np.float16)
    mask = np.zeros((SCORING_BATCH, clip_frames), np.float32)
    mask[len(rows) :, 0] = 1.0  # an empty clip has no softmax
    owner = np.full(SCORING_BATCH, -1)
    for i, (video, window) in enumerate(rows):
        features[i, : len(window)] = window
        mask[i, : len(window)] = 1.0
        owner[i] = video
    return Windows(features, mask, owner)
