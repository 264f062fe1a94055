"""Backbones: the pretrained network, built in or a user's ONNX file, and its input."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime

from vd.config import BackboneConfig, PresetName
from vd.errors import VdError
from vd.features.efficientnet import VARIANTS
from vd.features.quantized import QUANTIZED, known_ranges
from vd.features.sampling import VIEWS
from vd.features.weights import backbone_file


class Preset(NamedTuple):
    """What is computed of a video's frames."""

    backbone: str  # unless --backbone names another
    streams: tuple[str, ...]
    views: tuple[str, ...]


PRESETS: dict[PresetName, Preset] = {
    "fast": Preset("efficientnet-lite0-int8", ("rgb", "motion"), VIEWS[:1]),
    "default": Preset("efficientnet-lite0", ("rgb", "motion", "square"), VIEWS[:1]),
    "best": Preset("efficientnet-lite0", ("rgb", "motion", "square"), VIEWS),
}


@dataclass(frozen=True)
class Backbone:
    """A pretrained network, its input, and what it sees of a frame."""

    name: str
    size: int  # side of its square input in pixels
    file: Path  # weights, or the user's ONNX file
    mean: float = 0.0
    std: float = 1.0
    streams: tuple[str, ...] = ("rgb", "motion")
    views: tuple[str, ...] = VIEWS

    @property
    def built_in(self) -> bool:
        """Whether it is one of the EfficientNet-Lites, in floats or integers."""
        return self.name in VARIANTS or self.quantized

    @property
    def quantized(self) -> bool:
        """Whether it computes in 8-bit integers; it then has no form for JAX."""
        return self.name in QUANTIZED

    @cached_property
    def content(self) -> bytes:
        """The file, with the weights that a user's ONNX file keeps in others taken in."""
        return self.file.read_bytes() if self.built_in else _self_contained(self.file)

    @cached_property
    def description(self) -> dict[str, Any]:
        """What its features depend on, in JSON values; the ONNX file's place is no part."""
        digest = hashlib.sha256(self.content).hexdigest()
        named: dict[str, Any] = {"name": self.name} if self.built_in else {}
        if self.quantized:
            named["ranges"] = known_ranges(QUANTIZED[self.name])
        return {
            **named, "sha256": digest, "size": self.size, "mean": self.mean, "std": self.std,
        }  # fmt: skip


def find_backbone(config: BackboneConfig) -> Backbone:
    """The backbone that `--backbone` names; flags win over an ONNX file's metadata.

    Metadata keys: `vd.size`, `vd.mean`, `vd.std`. Raises `VdError` for an unknown name,
    and for a file that does not map images to one vector each.
    """
    preset = PRESETS[config.feature_preset]
    name = preset.backbone if config.backbone is None else config.backbone
    if (variant := QUANTIZED.get(name, name)) in VARIANTS:
        for flag in ("backbone_size", "backbone_mean", "backbone_std"):
            if getattr(config, flag) is not None:
                raise VdError(
                    f"--{flag.replace('_', '-')} goes with an ONNX file; {name} has its "
                    "own: leave the flag out."
                )
        size = VARIANTS[variant].resolution
        return Backbone(
            name,
            size,
            backbone_file(variant),
            streams=preset.streams,
            views=preset.views,
        )
    file = Path(name)
    if not file.is_file():
        raise VdError(
            f"--backbone {name} is neither a file nor one of "
            f"{', '.join((*VARIANTS, *QUANTIZED))}; give one of these or the path of an "
            "ONNX file."
        )
    session = onnx_session(file)
    _check_input(config, session, file)
    config = _with_metadata(config, session.get_modelmeta().custom_metadata_map)
    return Backbone(
        str(file),
        config.backbone_size or _side(session, file),
        file,
        0.0 if config.backbone_mean is None else config.backbone_mean,
        1.0 if config.backbone_std is None else config.backbone_std,
        preset.streams,
        preset.views,
    )


def onnx_session(model: Path | bytes) -> Any:
    """An ONNX Runtime session on the CPU; a call runs on the thread that makes it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # its errors reach us as exceptions
    try:
        return onnxruntime.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise VdError(
            f"--backbone {model!s:.200} is no ONNX file that ONNX Runtime can run "
            f"({str(error).splitlines()[0]}); export it again, and leave the files of its "
            "weights, if it has any, beside it."
        ) from error


def _self_contained(file: Path) -> bytes:
    """An ONNX file's bytes, with those weights taken in that its exporter put beside it."""
    import onnx

    content = file.read_bytes()
    network = onnx.load_from_string(content)
    alone = network.SerializeToString(deterministic=True)
    try:
        onnx.load_external_data_for_model(network, str(file.parent))
        whole = network.SerializeToString(deterministic=True)
    except Exception as error:  # protobuf's above 2 GB, onnx's own, the disk's
        raise VdError(
            f"--backbone {file} keeps weights in other files, which do not go into one "
            f"({str(error).splitlines()[0]}); put those files beside it, or export a "
            "network of less than 2 GB."
        ) from error
    return content if whole == alone else whole


def _check_input(config: BackboneConfig, session: Any, file: Path) -> None:
    """Raise `VdError` unless a network takes RGB images alone, in floats or bytes.

    One of bytes normalises them itself: flags that would are refused.
    """
    first, *others = session.get_inputs()
    images = len(first.shape) == 4 and 3 in (first.shape[1], first.shape[3])
    kind = first.type.removeprefix("tensor(").removesuffix(")")
    if others or not images or kind not in ("float", "uint8"):
        also = f" and {len(others)} more inputs" if others else ""
        raise VdError(
            f"--backbone {file} takes {kind} {first.shape}{also}; export it with one input, "
            "float or uint8 images of shape (N, H, W, 3) or (N, 3, H, W)."
        )
    for flag in ("backbone_mean", "backbone_std"):
        if kind == "uint8" and getattr(config, flag) is not None:
            raise VdError(
                f"--{flag.replace('_', '-')} goes with a network of float images, and {file} "
                "takes bytes, which it normalises itself: leave the flag out."
            )


def _side(session: Any, file: Path) -> int:
    """The side of a network's square input, from its shape."""
    shape = session.get_inputs()[0].shape
    sides = shape[2:] if shape[1] == 3 else shape[1:3]
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise VdError(
            f"--backbone {file} does not say the size of its images; give --backbone-size."
        )
    if sides[0] != sides[1]:
        raise VdError(
            f"--backbone {file} takes images of {sides[0]} × {sides[1]}; export it for square "
            "ones, to which vd resizes every frame."
        )
    return int(sides[0])


def _with_metadata(config: BackboneConfig, metadata: dict[str, str]) -> BackboneConfig:
    """The settings with those from the ONNX file's metadata that no flag gives."""
    kinds = {"size": int, "mean": float, "std": float}
    try:
        given = {
            f"backbone_{name}": kind(metadata[f"vd.{name}"])
            for name, kind in kinds.items()
            if getattr(config, f"backbone_{name}") is None and f"vd.{name}" in metadata
        }
        config = replace(config, **given)
    except (ValueError, VdError) as error:
        raise VdError(
            f"--backbone {config.backbone} has wrong metadata, one of vd.size, vd.mean, "
            f"vd.std ({error}); give --backbone-size, --backbone-mean, --backbone-std."
        ) from error
    return config
