"""Adaptation: fine-tuning of the backbone's upper blocks on the images of one stream.

Images are kept in a store like features: an ONNX file that returns the pixels of an image is
the backbone. So `vd.models.adapter.Adapter`, which contains the network, is trained like any
head, by `vd.training.loop.train`, and is resumed like any run.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float64, UInt8

from vd.config import AdaptConfig, BackboneConfig, Config, StreamName
from vd.console import say
from vd.data.manifest import Video
from vd.data.near_duplicates import duplicate_ids
from vd.data.splits import merge_groups
from vd.features.backbone import find_backbone
from vd.features.efficientnet import QUANTIZED
from vd.features.efficientnet_jax import onnx_parameters
from vd.features.efficientnet_onnx import measured_ranges
from vd.features.extract import extract
from vd.features.network import Network, built_in_network, write_networks
from vd.features.seen import Row as SeenRow
from vd.features.seen import seen_rows
from vd.files import read_csv, write_bytes, write_csv
from vd.models.adapter import Adapter, adapted_parameters, image_side, readout
from vd.models.detector import Detector
from vd.models.plugins import Plugins
from vd.training.feature_set import FeatureSet
from vd.training.image_augment import augment_motion, augment_rgb
from vd.training.log import FINAL, Row, read_metrics
from vd.training.loop import Phase, train
from vd.training.readout import READ_OUT, Linear
from vd.training.refit import (
    InnerFolds,
    held_logits,
    inner_folds,
    read_logits,
    write_logits,
)

VARIANT = "efficientnet-lite0"
_RANGED = 128  # images that the ranges of the 8-bit network are measured on


class Adapted(NamedTuple):
    """A network after adaptation, and its read-out of the mean over frames."""

    network: Network
    read_out: Linear


def image_config(config: Config, settings: AdaptConfig, stream: StreamName) -> Config:
    """The settings of the adaptation to a stream, in a folder within the run's."""
    folder = config.run.checkpoint_dir / "adaptation" / stream
    return replace(
        config,
        backbone=_image_backbone(config.data.cache_dir, stream, settings.size),
        run=replace(config.run, checkpoint_dir=folder),
    )


def _image_backbone(cache_dir: Path, stream: StreamName, side: int) -> BackboneConfig:
    """A backbone whose features of an image are its pixels; writes its ONNX file."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["features"]),
    ]
    tensor, dim = helper.make_tensor_value_info, side * side * 3
    images = tensor("images", TensorProto.UINT8, ["B", side, side, 3])
    features = tensor("features", TensorProto.FLOAT, ["B", dim])
    graph = helper.make_graph(nodes, "pixels", [images], [features])
    opset = helper.make_opsetid("", 13)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    helper.set_model_props(model, {"vd.streams": stream})
    cache_dir.mkdir(parents=True, exist_ok=True)
    file = cache_dir / f"{stream}-{side}.onnx"
    write_bytes(file, model.SerializeToString(deterministic=True))
    return BackboneConfig(backbone=str(file))


def adapter_plugins(settings: AdaptConfig, stream: StreamName) -> Plugins:
    """What the trainer trains in place of a head on features."""
    head = partial(Adapter, variant=VARIANT, fixed_blocks=settings.fixed_blocks)
    return Plugins(
        head=head,
        augmentation=augment_rgb if stream == "rgb" else augment_motion,
    )


def frozen_network(settings: AdaptConfig) -> Network:
    """The pretrained network, for the streams that it sees beside the adapted ones."""
    names = {name: int8 for int8, name in QUANTIZED.items()}
    network = built_in_network(names[VARIANT] if settings.int8 else VARIANT)
    return replace(network, size=settings.size, streams=settings.frozen_streams)


def inner_parts(videos: Sequence[Video], config: Config) -> list[list[Video]]:
    """The inner folds of an adaptation: near duplicates, like groups, are kept whole."""
    pairs = duplicate_ids(videos, config.data, config.decode)
    return inner_folds(merge_groups(videos, pairs), config.splits.split_seed)


class Adaptation(NamedTuple):
    """Everything that the adaptations of a run to one stream share.

    `rows` are the `clip_rows` of all usable clips, whatever their split.
    """

    config: Config
    settings: AdaptConfig
    stream: StreamName
    run_dir: Path
    devices: Sequence[jax.Device]
    batch_size: int
    rows: Mapping[str, SeenRow]

    def with_inner_folds(
        self, clips: FeatureSet, held: Sequence[Sequence[Video]]
    ) -> tuple[Adapted, InnerFolds]:
        """Adapt on all clips but each inner fold, then on all; can be continued.

        `held` are the inner folds, none with too few groups for them. The logits of a fold
        are those of the network that has not seen it.
        """
        if held:
            say(
                f"adapting {len(held) + 1} times: once without each of {len(held)} inner "
                "folds, then on all clips"
            )
        else:
            say(
                "too few groups for inner folds: temperature 1 and the loss's own threshold"
            )
        place = {video.name: n for n, video in enumerate(clips.videos)}
        fold_N, logits_2xN = np.zeros(len(place), int), np.zeros((2, len(place)))
        windows = [np.zeros(0)] * len(place)
        for fold, part in enumerate(held):
            places = [place[video.name] for video in part]
            fold_N[places] = fold
            folder = self._folder(fold)
            logits_2xN[:, places] = self.held_out_logits(clips, part, folder)
            for n, logit_W in zip(places, read_windows(folder, part), strict=True):
                windows[n] = logit_W
        earlier = [
            row
            for fold in range(len(held))
            for row in read_metrics(self._folder(fold), every_phase=True)
        ]
        adapted = self.on_all(clips, earlier)
        known = slice(None) if held else slice(0)
        logit_N, peak_N = logits_2xN[:, known]
        epochs = self.config.training.epochs
        inner = InnerFolds(epochs, {}, fold_N[known], logit_N, peak_N, windows[known])
        return adapted, inner

    def on_all(self, clips: FeatureSet, earlier: Sequence[Row] = ()) -> Adapted:
        """Adapt on all clips; `earlier` are lines of metrics.jsonl before its own."""
        return self._train(clips, self.run_dir, Phase(FINAL, earlier))

    def _folder(self, fold: int) -> Path:
        return self.run_dir / "inner" / f"fold-{fold}"

    def held_out_logits(
        self, clips: FeatureSet, part: Sequence[Video], folder: Path
    ) -> Float64[np.ndarray, "2 N"]:
        """Logits of a part of the clips, and of its peaks, by a network of all others.

        Adapts that network, or goes on, unless logits.csv in `folder` has them.
        """
        path = folder / "logits.csv"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            inside = {video.id for video in part}
            others = [video for video in clips.videos if video.id not in inside]
            phase = Phase(f"inner {folder.name}")
            adapted = self._train(clips.part(others), folder, phase)
            head, params = Detector(READ_OUT), adapted.read_out.params()
            held = self._features(adapted.network, part, folder)
            logit_N, windows = held_logits(head, params, held, clips)
            write_windows(folder, held.videos, windows)
            write_logits(path, held.videos, logit_N, windows)
        for name in ("checkpoints", "cache"):  # nobody reads them
            shutil.rmtree(folder / name, ignore_errors=True)
        return read_logits(path, part)

    def _features(
        self, network: Network, videos: Sequence[Video], folder: Path
    ) -> FeatureSet:
        """Features of a few videos by an adapted network, in a cache of their own."""
        write_networks(folder / "cache" / "backbone.npz", [network], half=True)
        backbone = BackboneConfig(backbone=str(folder / "cache" / "backbone.npz"))
        config = replace(
            self.config,
            data=replace(self.config.data, cache_dir=folder / "cache"),
            backbone=backbone,
        )
        store, _ = extract(videos, config, find_backbone(backbone))
        return FeatureSet(videos, store)

    def _train(self, clips: FeatureSet, folder: Path, phase: Phase) -> Adapted:
        """Train, or continue, to the end of the schedule."""
        plugins = adapter_plugins(self.settings, self.stream)
        params = train(
            self.config, clips, None, folder, self.devices, self.batch_size, plugins, phase
        )  # fmt: skip
        head = plugins.make_head(self.config.model)
        assert isinstance(head, Adapter)
        network = Network(
            VARIANT,
            image_side(clips.dim),
            onnx_parameters(adapted_parameters(head, params)),
            streams=(self.stream,),
            seen=seen_rows(clips.videos, (), self.rows),  # the length is fixed
        )
        # as its file has it, so that all figures are of the weights that are kept
        network = network.rounded()
        ranges = measured_ranges(network, _some_images(clips))
        network = replace(network, ranges=ranges, quantized=self.settings.int8)
        kernel_D, bias = readout(params)
        weight_D = kernel_D.astype(np.float64)
        return Adapted(network, Linear(weight_D, np.zeros_like(weight_D), bias))


def _some_images(clips: FeatureSet) -> UInt8[np.ndarray, "N H W 3"]:
    """One image, from the middle, of clips that lie evenly among all."""
    side = image_side(clips.dim)
    places = np.unique(np.linspace(0, len(clips) - 1, _RANGED).astype(int))
    pixels = [clips.read(n, 0)[clips.frames_N[n] // 2] for n in places.tolist()]
    return np.stack(pixels).astype(np.uint8).reshape(-1, side, side, 3)


def write_windows(
    folder: Path, videos: Sequence[Video], windows: Sequence[Float64[np.ndarray, " W"]]
) -> None:
    """Write the logit of every sliding window of held-out clips."""
    rows = [
        {"path": video.name, "logit": repr(float(logit))}
        for video, logit_W in zip(videos, windows, strict=True)
        for logit in logit_W
    ]
    write_csv(folder / "windows.csv", rows)


def read_windows(
    folder: Path, videos: Sequence[Video]
) -> list[Float64[np.ndarray, " W"]]:
    """What `write_windows` wrote, in the order of `videos`."""
    rows = read_csv(folder / "windows.csv")
    of_clip = {
        name: np.array([float(row["logit"]) for row in own])
        for name, own in groupby(rows, lambda row: row["path"])
    }
    return [of_clip[video.name] for video in videos]
