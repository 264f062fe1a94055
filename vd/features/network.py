"""A network of the EfficientNet-Lite family: a value, and the file of one or several.

The file is an uncompressed .npz archive without pickles: the parameters by name, float32 or
float16, and "network", all other fields as JSON in UTF-8 bytes (docs/data_format.md).
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vd.errors import VdError
from vd.features.efficientnet import (
    QUANTIZED,
    VARIANTS,
    Parameters,
    Ranges,
    folded_parameters,
    known_ranges,
    parameter_shapes,
)
from vd.files import write_bytes

_FORMAT = 2  # of the file
_FIELDS = "network"  # name of the array with the JSON text


@dataclass(frozen=True, eq=False)
class Network:
    """All that the features of an EfficientNet-Lite depend on, and what it was made from."""

    variant: str  # its architecture, for example "efficientnet-lite0"
    size: int  # side of its images in pixels
    parameters: Parameters  # as `folded_parameters` has them
    ranges: Ranges | None = None  # of its unbounded tensors, for 8 bits
    quantized: bool = False  # whether it computes in 8-bit integers
    streams: tuple[str, ...] = ()  # that it was made for; (): those of the preset
    # JSON values: the clips that it was made from, as `vd.features.seen.seen_rows`
    seen: Mapping[str, Any] = field(default_factory=dict)

    def rounded(self) -> "Network":
        """The network with weights that float16 can hold, as `write_networks` halves them."""
        return replace(
            self,
            parameters={
                name: value.astype(np.float16).astype(np.float32)
                for name, value in self.parameters.items()
            },
        )


def built_in_network(name: str) -> Network:
    """The pretrained network of that name, float or 8-bit."""
    variant = QUANTIZED.get(name, name)
    return Network(
        variant,
        VARIANTS[variant].resolution,
        folded_parameters(variant),
        known_ranges(variant),
        quantized=name in QUANTIZED,
    )


def write_networks(path: Path, networks: Sequence[Network], half: bool = False) -> None:
    """Write the networks' file, whole or not at all; equal networks give equal bytes.

    `half`: weights are stored as float16, so what is read is `network.rounded()`; measure
    ranges and figures on that one. Raises `ValueError` when they cannot be computed.
    """
    _check(networks)
    described = {"format": _FORMAT, "networks": list(map(_fields, networks))}
    text = json.dumps(described, sort_keys=True, allow_nan=False).encode()
    arrays: dict[str, Any] = {_FIELDS: np.frombuffer(text, np.uint8)}
    dtype = np.float16 if half else np.float32
    for number, network in enumerate(networks):
        stored = (network.rounded() if half else network).parameters
        for name in parameter_shapes(network.variant):
            array = np.asarray(stored[name], dtype, order="C")
            arrays[f"{number}.{name}"] = array
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes(path, content.getvalue())


def _fields(network: Network) -> dict[str, Any]:
    """All but the parameters, in JSON values."""
    return {key: value for key, value in vars(network).items() if key != "parameters"}


def read_networks(path: Path) -> tuple[Network, ...]:
    """The networks of a file that `write_networks` wrote; weights are float32.

    Raises `VdError` when the file is missing, damaged, or of another format.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        if not zipfile.is_zipfile(content):
            raise ValueError("it is no archive")
        with np.load(content, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive}
        described = json.loads(arrays.pop(_FIELDS).tobytes())
        if described["format"] == _FORMAT:
            networks = []
            for number, own in enumerate(described["networks"]):
                prefix = f"{number}."
                named = [name for name in arrays if name.startswith(prefix)]
                parameters = {n.removeprefix(prefix): arrays.pop(n) for n in named}
                own["streams"] = tuple(own["streams"])
                networks.append(Network(**own, parameters=parameters))
            if arrays:
                raise ValueError(f"{min(arrays)} belongs to none of its networks")
            _check(networks)
            return tuple(
                replace(
                    n,
                    parameters={
                        k: v.astype(np.float32) for k, v in n.parameters.items()
                    },
                )
                for n in networks
            )
    except Exception as error:  # numpy's, zipfile's, the disk's: no common base
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise VdError(
            f"{path} is damaged or is no network that vd wrote ({reason}); write it again, "
            "or put back a copy."
        ) from error
    raise VdError(
        f"{path} has another format than {_FORMAT}, which this version of vd reads; "
        "use the version that wrote it, or write it again."
    )


def _check(networks: Sequence[Network]) -> None:
    """Raise `ValueError` when the networks cannot be computed together, or one not at all."""
    for network in networks:
        _check_one(network)
    if len(sizes := {network.size for network in networks}) != 1:
        raise ValueError(f"its networks take images of the sizes {sorted(sizes)}")


def _check_one(network: Network) -> None:
    """Raise `ValueError` when a parameter is not what the architecture needs."""
    shapes = {name: value.shape for name, value in network.parameters.items()}
    expected = parameter_shapes(network.variant)
    if differ := sorted(shapes.items() ^ expected.items()):
        raise ValueError(
            f"{differ[0][0]} is missing or has another name or shape than in "
            f"{network.variant}"
        )
    for name, value in network.parameters.items():
        if value.dtype not in (np.float16, np.float32) or not np.isfinite(value).all():
            raise ValueError(f"{name} has values that are no finite floats")
    if network.quantized and network.ranges is None:
        raise ValueError("it computes in 8 bits and has no ranges")
