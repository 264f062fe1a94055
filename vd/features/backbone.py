"""Backbones: networks, built in or of a file (.npz of ours, or ONNX), and their input."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vd.config import BackboneConfig, PresetName
from vd.data.decode import FrameSettings
from vd.data.streams import STREAMS
from vd.errors import VdError
from vd.features.efficientnet import FEATURES, QUANTIZED, VARIANTS, known_ranges
from vd.features.network import Network, built_in_network, read_networks
from vd.features.sampling import VIEWS
from vd.features.weights import backbone_file

if TYPE_CHECKING:
    import onnx


class Preset(NamedTuple):
    """What is computed from a video's frames."""

    backbone: str  # unless --backbone names another
    streams: tuple[str, ...]
    views: tuple[str, ...]
    size: int | None = None  # side of the backbone's images; None: its own


PRESETS: dict[PresetName, Preset] = {
    "fast": Preset("efficientnet-lite0-int8", ("motion", "square"), VIEWS[:1], 160),
    "default": Preset("efficientnet-lite0", ("rgb", "motion", "square"), VIEWS[:1]),
    "best": Preset("efficientnet-lite0", ("rgb", "motion", "square"), VIEWS),
}

COPIES = ("backbone.onnx", "backbone.npz")  # names of a user's file in a run folder


@dataclass(frozen=True)
class Backbone:
    """Networks with one input, and the streams and views that they see.

    The features of a frame are those of each network in order, and of a network those of
    each of its streams in order.
    """

    name: str
    size: int  # side of the square input in pixels
    file: Path  # weights, or the user's file
    dim: int | None = FEATURES  # features of an image; None: the file does not say
    mean: float = 0.0
    std: float = 1.0
    # the streams of each network; (): those of the preset
    reads: tuple[tuple[str, ...], ...] = ((),)
    views: tuple[str, ...] = VIEWS
    is_onnx: bool = False  # whether the file is a user's ONNX file
    # of an .npz file, which takes a while to read
    read: tuple[Network, ...] = field(default=(), repr=False, compare=False)

    @property
    def built_in(self) -> bool:
        """Whether it is one of the pretrained EfficientNet-Lites, float or 8-bit."""
        return self.name in (*VARIANTS, *QUANTIZED)

    @property
    def copy_name(self) -> str | None:
        """Name of its copy in a run folder; None: built in, so there is none."""
        if self.built_in:
            return None
        return COPIES[0] if self.is_onnx else COPIES[1]

    @property
    def streams(self) -> tuple[str, ...]:
        """All streams that are decoded, each once."""
        return tuple(dict.fromkeys(chain.from_iterable(self.reads)))

    @property
    def places(self) -> list[list[int]]:
        """Where each network's streams are among `streams`."""
        return [[self.streams.index(name) for name in own] for own in self.reads]

    @property
    def vectors(self) -> int:
        """Number of vectors of length `dim` that are a frame's features."""
        return sum(map(len, self.reads))

    @cached_property
    def networks(self) -> tuple[Network, ...]:
        """The EfficientNet-Lites that it is; none for an ONNX file."""
        if self.built_in:
            return (replace(built_in_network(self.name), size=self.size),)
        return self.read

    @cached_property
    def seen(self) -> Mapping[str, Any]:
        """The clips that it was adapted on, as `vd.features.seen.seen_rows` has them."""
        rows: dict[str, dict[str, Any]] = {}
        for network in () if self.built_in else self.networks:
            for part, own in network.seen.items():  # two networks may have seen a clip
                named = {json.dumps(row, sort_keys=True): row for row in own}
                rows.setdefault(part, {}).update(named)
        return {part: list(named.values()) for part, named in rows.items()}

    @property
    def frames(self) -> FrameSettings:
        """The frames that it takes of a video."""
        return FrameSettings(self.size, self.size, streams=self.streams)

    @cached_property
    def content(self) -> bytes:
        """The file, including weights that a user's ONNX file keeps in other files."""
        return _read_onnx(self.file)[0] if self.is_onnx else self.file.read_bytes()

    @cached_property
    def description(self) -> dict[str, Any]:
        """What its features depend on, in JSON values; a user's path is not part."""
        digest = hashlib.sha256(self.content).hexdigest()
        named: dict[str, Any] = {"name": self.name} if self.built_in else {}
        if self.name in QUANTIZED:
            named["ranges"] = known_ranges(QUANTIZED[self.name])
        return {
            **named, "sha256": digest, "size": self.size, "mean": self.mean, "std": self.std,
        }  # fmt: skip


def find_backbone(config: BackboneConfig) -> Backbone:
    """The backbone that `--backbone` names; flags win over an ONNX file's metadata.

    Metadata keys: `vd.size`, `vd.mean`, `vd.std`, `vd.streams` (names, with commas). The file
    of networks (.npz) says their size. The streams of either win over the preset's, whose
    size is that of its own backbone alone. Raises `VdError` for anything else, and for flags
    of what the network says itself.
    """
    preset = PRESETS[config.feature_preset]
    name = preset.backbone if config.backbone is None else config.backbone
    file = Path(name)
    if (variant := QUANTIZED.get(name, name)) in VARIANTS:
        _check_flags(config, name, ("mean", "std"))
        of_preset = preset.size if config.backbone is None else None
        size = config.backbone_size or of_preset or VARIANTS[variant].resolution
        backbone = Backbone(name, size, backbone_file(variant))
    elif file.suffix == ".npz" and file.is_file():
        _check_flags(config, name, ("size", "mean", "std"))
        backbone = _network_backbone(file)
    elif file.is_file():
        backbone = _user_backbone(config, file)
    else:
        raise VdError(
            f"--backbone {name} is neither a file nor one of "
            f"{', '.join((*VARIANTS, *QUANTIZED))}; give one of these or the path of an "
            "ONNX or .npz file."
        )
    reads = tuple(own or preset.streams for own in backbone.reads)
    if unknown := set(chain.from_iterable(reads)) - set(STREAMS):
        raise VdError(
            f"--backbone {name} was made for the stream {min(unknown)!r}, which is none of "
            f"{', '.join(STREAMS)}; define it in STREAMS, or take another network."
        )
    return replace(backbone, reads=reads, views=preset.views)


def _check_flags(config: BackboneConfig, name: str, flags: Sequence[str]) -> None:
    """Raise `VdError` when one of `flags` is given, which the network decides itself."""
    for flag in flags:
        if getattr(config, f"backbone_{flag}") is not None:
            raise VdError(f"--backbone-{flag}: {name} has its own; leave it out.")


def _network_backbone(file: Path) -> Backbone:
    """The networks of an .npz file, with the streams that they were made for."""
    networks = read_networks(file)
    reads = tuple(network.streams for network in networks)
    return Backbone(str(file), networks[0].size, file, reads=reads, read=networks)


def _user_backbone(config: BackboneConfig, file: Path) -> Backbone:
    """The network of an ONNX file whose only input is images; no session is opened."""
    from onnx import TensorProto

    _, network = _read_onnx(file)
    graph = network.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    shapes = [_shape(value) for value in inputs]
    kinds = [value.type.tensor_type.elem_type for value in inputs]
    images = len(inputs) == 1 and len(shapes[0]) == 4 and 3 in shapes[0][1::2]
    if not images or kinds[0] not in (TensorProto.FLOAT, TensorProto.UINT8):
        raise VdError(
            f"--backbone {file} has inputs of the shapes {shapes}; export it with one "
            "input, float or uint8 images of shape (N, H, W, 3) or (N, 3, H, W)."
        )
    normalised = (config.backbone_mean, config.backbone_std) != (None, None)
    if kinds[0] == TensorProto.UINT8 and normalised:
        raise VdError(
            "--backbone-mean and --backbone-std are for networks of float images; "
            f"{file} takes bytes and normalises them itself: leave them out."
        )
    metadata = {p.key: p.value for p in network.metadata_props}
    config = _with_metadata(config, metadata)
    size = config.backbone_size or shapes[0][2]  # the width, or the height
    if not isinstance(size, int):
        raise VdError(
            f"--backbone {file} takes images of any size; give --backbone-size."
        )
    output = _shape(graph.output[0])
    dim = output[1] if len(output) == 2 else None
    return Backbone(
        str(file),
        size,
        file,
        dim if isinstance(dim, int) and dim > 0 else None,
        0.0 if config.backbone_mean is None else config.backbone_mean,
        1.0 if config.backbone_std is None else config.backbone_std,
        reads=(tuple(filter(None, metadata.get("vd.streams", "").split(","))),),
        is_onnx=True,
    )


def _read_onnx(file: Path) -> tuple[bytes, "onnx.ModelProto"]:
    """An ONNX file's content and network, including weights in other files."""
    import onnx

    try:
        alone = onnx.load(file, load_external_data=False)
        network = onnx.load(file)
        network.graph.output[0]  # an empty file has none
    except Exception as error:  # protobuf's, onnx's own, the disk's
        raise VdError(
            f"--backbone {file} cannot be read as an ONNX file "
            f"({str(error).splitlines()[0]}); export a network of less than 2 GB again, and "
            "put the files of its weights, if any, beside it."
        ) from error
    whole = network.SerializeToString(deterministic=True)
    if whole == alone.SerializeToString(deterministic=True):
        return file.read_bytes(), network
    return whole, network


def _shape(value: "onnx.ValueInfoProto") -> list[int | str]:
    """The dimensions of an input or output: numbers, or names of those left open."""
    dimensions = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in dimensions]


def _with_metadata(config: BackboneConfig, metadata: dict[str, str]) -> BackboneConfig:
    """The settings, completed from the ONNX file's metadata where no flag is given."""
    try:
        for name, kind in (("size", int), ("mean", float), ("std", float)):
            flag, key = f"backbone_{name}", f"vd.{name}"
            if getattr(config, flag) is None and key in metadata:
                value: Any = kind(metadata[key])
                config = replace(config, **{flag: value})
        return config
    except (ValueError, VdError) as error:
        raise VdError(
            f"--backbone {config.backbone} has wrong metadata, one of vd.size, vd.mean, "
            f"vd.std ({error}); give --backbone-size, --backbone-mean, --backbone-std."
        ) from error
