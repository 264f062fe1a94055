"""Feature sets made of numbers, for tests of training that need no video."""

from pathlib import Path

import jax
import numpy as np

from vd.config import Config, DataConfig, ModelConfig, RunConfig, TrainingConfig
from vd.data.manifest import Video
from vd.data.outcome import Outcome
from vd.evaluation.predictions import Predictions
from vd.features.shards import PART_FRAMES, Part
from vd.features.store import FeatureStore
from vd.training.feature_set import FeatureSet
from vd.training.log import read_metrics
from vd.training.loop import train

STREAMS, DIM = 2, 6


def made_up_predictions(
    paths, labels, probability, threshold=0.5, groups=None, ids=None, fold=None
):
    """Predictions for the clips at `paths`."""
    nothing = [""] * len(labels)
    probability = np.array(probability, float)
    return Predictions(
        *(np.array(list(x), object) for x in (paths, groups or nothing, ids or paths)),
        np.array(labels),
        probability,
        probability,
        probability >= threshold,
        np.full(len(labels), -1 if fold is None else fold),
    )


def make_videos(count, prefix="v"):
    """Videos of alternating class."""
    names = [f"{prefix}{i}" for i in range(count)]
    return [
        Video(Path(f"{name}.mp4"), f"{name}.mp4", i % 2, "train", "", name)
        for i, name in enumerate(names)
    ]


def features_of(video, frames, views=2, signal=1.0):
    """Random features, different in every view, whose mean depends on the class."""
    rng = np.random.default_rng([len(video.id), *video.id.encode()])
    features = rng.normal(size=(views, frames, STREAMS, DIM))
    features[..., 0] += signal * (2 * video.label - 1)
    return features.astype(np.float16)


def seconds_of(frames):
    """The seconds of a video's frames: 8 a second, with a gap in the middle."""
    seconds_F = np.arange(frames) / 8
    seconds_F[frames // 2 :] += 1 / 3
    return seconds_F


def in_parts(features_VxFxSxD):
    """The parts of a video's features, as extraction stores them."""
    seconds_F = seconds_of(features_VxFxSxD.shape[1])
    for start in range(0, len(seconds_F), PART_FRAMES):
        frames = slice(start, start + PART_FRAMES)
        yield Part(features_VxFxSxD[:, frames], seconds_F[frames])


def fill(store, videos):
    """Add videos to a store: arguments of `FeatureStore.add` each."""
    try:
        for video in videos:
            store.add(*video)
    finally:
        store.finish()


def open_store(cache_dir):
    return FeatureStore(Path(cache_dir), {"made": "up"}, STREAMS, DIM)


def make_set(cache_dir, videos, frames=lambda i: 5 + i % 4, signal=1.0, devices=()):
    """A feature set of `videos`, stored and read back."""
    store = open_store(cache_dir)
    for i, video in enumerate(videos):
        if video.id not in store.rows:
            features = features_of(video, frames(i), signal=signal)
            store.add(video.id, Outcome("used"), "test", in_parts(features))
    store.finish()
    return FeatureSet(videos, store, devices)


SMALL_MODEL = ModelConfig(8, 16, 8, 0.3, mixed_precision=False)


def numbers_config(folder, epochs, profile=False, model=SMALL_MODEL, **settings):
    """The settings of `train_on_numbers`."""
    training = TrainingConfig(
        **{
            "epochs": epochs,
            "batch_size": 4,
            "warmup_epochs": 1,
            "learning_rate": 0.01,
            "early_stopping_patience": 50,
            **settings,
        }
    )
    return Config(
        data=DataConfig(folder),
        model=model,
        training=training,
        run=RunConfig(profile=profile),
    )


def train_on_numbers(folder, epochs, devices=2, val=9, signal=1.0, **settings):
    """Train on made-up features in `folder`/run, four steps an epoch, or go on with it."""
    config = numbers_config(folder, epochs, **settings)
    train_set = make_set(folder / "cache", make_videos(16), signal=signal)
    val_set = make_set(folder / "cache", make_videos(val, "val"), signal=signal)
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)
    used = jax.local_devices()[:devices]
    return train(config, train_set, val_set, run_dir, used, 4)


def same_leaves(a, b):
    """Whether two trees of arrays are equal to the bit."""
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def metrics_without_timing(folder):
    """The lines of the run in `folder`, without what a clock gave."""
    timing = {"seconds", "videos_per_second", "input_wait_fraction"}
    return [
        {key: value for key, value in row.items() if key not in timing}
        for row in read_metrics(folder / "run")
    ]


def write_tiny_backbone(
    path, size=32, dim=8, channels_first=False, metadata=None, batch="N",
    of_bytes=False, scale=1.0, **how_saved,
):  # fmt: skip
    """An ONNX file that takes float images of side `size` to `dim` values: fast and crude.

    `batch` is its batch size where that is fixed; `of_bytes` makes it take uint8 images;
    `scale` multiplies its weights.
    """
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3 * 16, dim)).astype(np.float32) * scale / 500
    shape = [batch, 3, size, size] if channels_first else [batch, size, size, 3]
    side, kind, nodes, images = size // 4, TensorProto.FLOAT, [], "images"
    if of_bytes:
        kind = TensorProto.UINT8
        nodes.append(
            helper.make_node("Cast", [images], ["floats"], to=TensorProto.FLOAT)
        )
        images = "floats"
    if not channels_first:
        nodes.append(
            helper.make_node("Transpose", [images], ["nchw"], perm=[0, 3, 1, 2])
        )
        images = "nchw"
    window = {"kernel_shape": [side, side], "strides": [side, side]}
    nodes += [
        helper.make_node("AveragePool", [images], ["pooled"], **window),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, dim])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    save(model, str(path), **how_saved)
    return path
