"""Engines: uint8 images in, float32 features out. ONNX Runtime on a CPU, JAX elsewhere."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from vd.config import EngineName, usable_cores
from vd.console import say
from vd.errors import VdError
from vd.features.backbone import Backbone, onnx_session
from vd.features.efficientnet import FEATURES, VARIANTS, folded_parameters, onnx_model
from vd.features.quantized import QUANTIZED, known_ranges, quantized_model

_PROBED = 4  # images that a user's network is tried with
_JAX_BATCH = (
    64  # a device; fixed, so that a clip's features do not depend on neighbours
)

Images = UInt8[np.ndarray, "N H W 3"]
Features = Float32[np.ndarray, "N D"]


class Engine(Protocol):
    """Runs a backbone. An image's features do not depend on the images beside it."""

    name: str
    dim: int
    batch: int  # images that it takes at a time, on all cores or devices

    def __call__(self, images_NxHxWx3: Images) -> Features:
        """Features of RGB images of the backbone's size."""
        ...


def make_engine(
    backbone: Backbone, name: EngineName, before: str = "", threads: int | None = None
) -> Engine:
    """The engine called `name`; auto is JAX where there is an accelerator and a form for it.

    `before` is the engine that a run's features came from: auto takes it where it can,
    else says so. `threads` are those of ONNX Runtime, else one a core.
    """
    if name == "auto":
        both = backbone.built_in and not backbone.quantized
        name = "jax" if both and _has_accelerator() else "onnxruntime"
        if before == "onnxruntime":
            name = "onnxruntime"
        elif before and before != name:
            say(
                f"note: features by {name}; those of the run are by {before}, to 1e-4 alike"
            )
    if name == "onnxruntime":
        return OnnxEngine(backbone, threads)
    if backbone.name not in VARIANTS:
        raise VdError(
            f"--engine jax runs {', '.join(VARIANTS)} only; leave it out for "
            f"{backbone.name}."
        )
    return JaxEngine(backbone)


class OnnxEngine:
    """ONNX Runtime, an image at a time on every core; the same bits whatever the company.

    Cores that share no image never wait for each other: faster than one image over all of
    them (docs/performance.md).
    """

    name = "onnxruntime"

    def __init__(self, backbone: Backbone, threads: int | None = None) -> None:
        model: Path | bytes = backbone.file
        if backbone.quantized:
            variant = QUANTIZED[backbone.name]
            model = quantized_model(variant, known_ranges(variant)).SerializeToString()
        elif backbone.built_in:
            model = onnx_model(backbone.name).SerializeToString()
        self._session = onnx_session(model)
        cores = threads or usable_cores()
        self._threads = ThreadPoolExecutor(cores)
        self._backbone = backbone
        source = self._session.get_inputs()[0]
        self._input, self._raw = source.name, source.type == "tensor(uint8)"
        self._channels_first = len(source.shape) == 4 and source.shape[1] == 3
        fixed = source.shape[0] if source.shape else None
        self._fixed = fixed if isinstance(fixed, int) else None
        self._each = self._fixed or 1
        self.batch = cores * self._each
        self.dim = FEATURES if backbone.built_in else self._probe()

    def __call__(self, images_NxHxWx3: Images) -> Features:
        """Features; a core takes as many images at a time as the network fixes, else one."""
        starts = range(0, len(images_NxHxWx3), self._each)
        batches = (images_NxHxWx3[start : start + self._each] for start in starts)
        parts = list(self._threads.map(self._run, batches))
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def _run(self, images: Images) -> Features:
        backbone, count = self._backbone, len(images)
        batch: Any = images
        if self._fixed is not None and count < self._fixed:
            batch = np.concatenate([images, images[:1].repeat(self._fixed - count, 0)])
        if not self._raw:
            batch = (batch.astype(np.float32) - np.float32(backbone.mean)) / np.float32(
                backbone.std
            )
        if self._channels_first:
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        features = np.atleast_1d(self._session.run(None, {self._input: batch})[0])
        with np.errstate(over="ignore"):  # of float64; infinity is told of later
            return features[:count].astype(np.float32, copy=False)

    def _probe(self) -> int:
        """Length of the vector that a user's network gives for an image, whatever its batch."""
        size, file = self._backbone.size, self._backbone.file
        count = self._fixed or _PROBED
        generator = np.random.Generator(np.random.Philox(0))
        images = generator.integers(0, 256, (count, size, size, 3), np.uint8)
        images[-1] = 0  # black, of which a video may have many
        try:
            features, alone = self._run(images), self._run(images[:1])
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise VdError(
                f"--backbone {file} does not take {count} RGB images of side {size} "
                f"({str(error).splitlines()[0]}); set --backbone-size, or export it again."
            ) from error
        if features.ndim != 2 or len(features) != len(images) or not features.size:
            raise VdError(
                f"--backbone {file} gives the shape {features.shape} for {len(images)} "
                "images; it must give one vector each: add pooling to the network."
            )
        if not np.allclose(alone[0], features[0], rtol=1e-3, atol=1e-3):
            raise VdError(
                f"--backbone {file} gives an image other features in other company, or "
                "values that are not finite; export it in inference mode, in float32."
            )
        return int(features.shape[1])


class JaxEngine:
    """The Flax module under pmap on all local devices, in one padded batch shape."""

    name = "jax"
    dim = FEATURES

    def __init__(self, backbone: Backbone) -> None:
        import jax

        from vd.devices import prepare_jax
        from vd.features.efficientnet_flax import EfficientNetLite, flax_parameters

        prepare_jax()
        self._devices = jax.local_device_count()
        self.batch = self._devices * _JAX_BATCH
        module = EfficientNetLite(backbone.name)
        variables = flax_parameters(folded_parameters(backbone.name))
        self._apply = jax.pmap(
            lambda images: module.apply(variables, images),
            devices=jax.local_devices(),  # not those of other processes
        )

    def __call__(self, images_NxHxWx3: Images) -> Features:
        """Features, a padded batch of every device at a time."""
        starts = range(0, len(images_NxHxWx3), self.batch)
        batches = (images_NxHxWx3[start : start + self.batch] for start in starts)
        # all are under way before the first is waited for
        parts = [self._run(images) for images in batches]
        made = [np.asarray(part).reshape(self.batch, self.dim) for part in parts]
        none = np.zeros((0, self.dim), np.float32)
        return np.concatenate([*made, none])[: len(images_NxHxWx3)]

    def _run(self, images: Images) -> Any:
        """Features of at most a batch, and of its padding, on the devices."""
        shape = images.shape[1:]
        lacking = self.batch - len(images)
        if lacking:
            images = np.concatenate([images, np.zeros((lacking, *shape), np.uint8)])
        return self._apply(images.reshape(self._devices, _JAX_BATCH, *shape))


def _has_accelerator() -> bool:
    """Whether JAX runs on something else than a CPU; jax is imported only if it may."""
    import importlib.util

    if not any(
        importlib.util.find_spec(f"jax_{kind}_plugin") for kind in ("cuda12", "cuda13")
    ):
        return False
    import jax

    return jax.default_backend() != "cpu"
