"""Adaptation: fine-tuning of the backbone's upper blocks on the training clips' images.

Images are kept in a store like features: an ONNX file that returns the pixels of an image is
the backbone. So `vd.models.adapter.Adapter`, which contains the network, is trained like any
head, by `vd.training.loop.train`, and is resumed like any run.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from vd.config import AdaptConfig, BackboneConfig, Config, ModelConfig
from vd.console import say
from vd.data.manifest import Video
from vd.data.near_duplicates import duplicate_ids
from vd.data.splits import merge_groups
from vd.features.backbone import find_backbone
from vd.features.efficientnet_jax import onnx_parameters
from vd.features.efficientnet_onnx import measured_ranges
from vd.features.extract import extract
from vd.features.network import Network, write_network
from vd.features.seen import Row as SeenRow
from vd.features.seen import seen_rows
from vd.files import write_bytes
from vd.models.adapter import Adapter, adapted_parameters, image_side, readout
from vd.models.detector import Detector
from vd.models.head import Params
from vd.models.plugins import Plugins
from vd.training.checkpoints import Checkpoint, Checkpoints
from vd.training.feature_set import FeatureSet
from vd.training.image_augment import augment_motion, augment_rgb
from vd.training.log import FINAL, EarlyStopping, Row, read_metrics
from vd.training.loop import Phase, train
from vd.training.refit import InnerFolds, inner_folds, read_logits, write_logits
from vd.training.step import TrainState

VARIANT = "efficientnet-lite0"
_RANGED = 128  # images that the ranges of the 8-bit network are measured on
READ_OUT = ModelConfig(linear_path=True, hidden_size=0, mixed_precision=False)


class Adapted(NamedTuple):
    """A network after adaptation, and its linear read-out of the mean over frames."""

    network: Network
    kernel_D: Float32[np.ndarray, " D"]
    bias: float


def image_config(config: Config, settings: AdaptConfig) -> Config:
    """The settings of the adaptation of a run, in a folder within the run's."""
    run_dir = config.run.checkpoint_dir
    return replace(
        config,
        backbone=_image_backbone(config.data.cache_dir, settings),
        run=replace(config.run, checkpoint_dir=run_dir / "adaptation"),
    )


def _image_backbone(cache_dir: Path, settings: AdaptConfig) -> BackboneConfig:
    """A backbone whose features of an image are its pixels; writes its ONNX file."""
    from onnx import TensorProto, helper

    side = settings.size
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
    helper.set_model_props(model, {"vd.streams": settings.stream})
    cache_dir.mkdir(parents=True, exist_ok=True)
    file = cache_dir / f"{settings.stream}-{side}.onnx"
    write_bytes(file, model.SerializeToString(deterministic=True))
    return BackboneConfig(backbone=str(file))


def adapter_plugins(settings: AdaptConfig) -> Plugins:
    """What the trainer trains in place of a head on features."""
    head = partial(Adapter, variant=VARIANT, fixed_blocks=settings.fixed_blocks)
    return Plugins(
        head=head,
        augmentation=augment_rgb if settings.stream == "rgb" else augment_motion,
    )


def inner_parts(videos: Sequence[Video], config: Config) -> list[list[Video]]:
    """The inner folds of an adaptation: near duplicates, like groups, are kept whole."""
    pairs = duplicate_ids(videos, config.data, config.decode)
    return inner_folds(merge_groups(videos, pairs), config.splits.split_seed)


class Adaptation(NamedTuple):
    """Everything that the adaptations of a run share.

    `rows` are the `clip_rows` of all usable clips, whatever their split.
    """

    config: Config
    settings: AdaptConfig
    run_dir: Path
    devices: Sequence[jax.Device]
    batch_size: int
    rows: Mapping[str, SeenRow]

    def with_inner_folds(self, clips: FeatureSet) -> tuple[Adapted, InnerFolds]:
        """Adapt on the other inner folds of each, then on all clips; can be continued.

        The logits of a fold are those of the network that has not seen it. With too few
        groups for inner folds there are none.
        """
        held = inner_parts(clips.videos, self.config)
        if held:
            say(
                f"adapting {len(held) + 1} times: once without each of {len(held)} inner "
                "folds, then on all clips"
            )
        else:
            say(
                "too few groups for inner folds: temperature 1 and the loss's own threshold"
            )
        place = {video.id: n for n, video in enumerate(clips.videos)}
        fold_N, logits_2xN = np.zeros(len(place), int), np.zeros((2, len(place)))
        for fold, part in enumerate(held):
            places = [place[video.id] for video in part]
            fold_N[places] = fold
            logits_2xN[:, places] = self.held_out_logits(
                clips, part, self._folder(fold)
            )
        earlier = [
            row
            for fold in range(len(held))
            for row in read_metrics(self._folder(fold), every_phase=True)
        ]
        adapted = self.on_all(clips, earlier)
        known = slice(None) if held else slice(0)
        return adapted, InnerFolds(
            self.config.training.epochs, {}, fold_N[known], *logits_2xN[:, known]
        )

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
            head, params = Detector(READ_OUT), read_out(adapted)
            held = self._features(adapted.network, part, folder)
            write_logits(path, head, params, held, clips)
        for name in ("checkpoints", "cache"):  # nobody reads them
            shutil.rmtree(folder / name, ignore_errors=True)
        return read_logits(path)

    def _features(
        self, network: Network, videos: Sequence[Video], folder: Path
    ) -> FeatureSet:
        """Features of a few videos by an adapted network, in a cache of their own."""
        write_network(folder / "cache" / "backbone.npz", network, half=True)
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
        plugins = adapter_plugins(self.settings)
        params = train(
            self.config, clips, None, folder, self.devices, self.batch_size, plugins, phase
        )  # fmt: skip
        head = plugins.make_head(self.config.model)
        assert isinstance(head, Adapter)
        network = Network(
            VARIANT,
            image_side(clips.dim),
            onnx_parameters(adapted_parameters(head, params)),
            streams=(self.settings.stream,),
            seen=seen_rows(clips.videos, (), self.rows),  # the length is fixed
        )
        # as its file has it, so that all figures are of the weights that are kept
        network = network.rounded()
        ranges = measured_ranges(network, _some_images(clips))
        network = replace(network, ranges=ranges, quantized=self.settings.int8)
        return Adapted(network, *readout(params))


def _some_images(clips: FeatureSet) -> UInt8[np.ndarray, "N H W 3"]:
    """One image, from the middle, of clips that lie evenly among all."""
    side = image_side(clips.dim)
    places = np.unique(np.linspace(0, len(clips) - 1, _RANGED).astype(int))
    pixels = [clips.read(n, 0)[clips.frames_N[n] // 2] for n in places.tolist()]
    return np.stack(pixels).astype(np.uint8).reshape(-1, side, side, 3)


def read_out(adapted: Adapted) -> Params:
    """The read-out as parameters of the head `READ_OUT`.

    That is a linear path whose features are not standardised, without weights for the
    deviation over time.
    """
    size = len(adapted.kernel_D)
    kernel_2D = np.concatenate([adapted.kernel_D, np.zeros(size, np.float32)])
    bias_1 = np.array([adapted.bias], np.float32)
    return {
        "pooled_mean": np.zeros(2 * size, np.float32),
        "pooled_deviation": np.ones(2 * size, np.float32),
        "linear": {"kernel": kernel_2D[:, None], "bias": bias_1},
    }


def write_read_out(run_dir: Path, adapted: Adapted, epochs: int) -> Params:
    """Save the read-out as the run's checkpoint; returns the head's parameters."""
    params = read_out(adapted)
    stopping = EarlyStopping("", 1, 0.0, epoch=epochs, best_epoch=epochs)
    state = TrainState(np.zeros((), np.int32), params, {})  # type: ignore[arg-type]
    with Checkpoints(run_dir) as checkpoints:
        checkpoints.save(Checkpoint(state, stopping))
    return params
