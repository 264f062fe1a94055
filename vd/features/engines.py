"""Engines: uint8 images in, float32 features out. ONNX Runtime on a CPU, JAX elsewhere.

An engine runs each network of a backbone: the first, unless a call says which.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnxruntime
from jaxtyping import Float32, UInt8

from vd.config import EngineName, usable_cores
from vd.console import check_interrupt, say
from vd.errors import VdError
from vd.features.backbone import Backbone
from vd.features.efficientnet import FEATURES, VARIANTS
from vd.features.efficientnet_onnx import network_model

_JAX_BATCH = 64  # per device; fixed, so that features do not depend on other images

Images = UInt8[np.ndarray, "N H W 3"]
Features = Float32[np.ndarray, "N D"]


def make_engine(
    backbone: Backbone, name: EngineName, before: str = "", threads: int | None = None
) -> "Engine":
    """The engine called `name`; auto is JAX on an accelerator if the backbone has a JAX form.

    `before` is the engine that made a run's features: auto takes it if possible, else
    prints a note. `threads`: for ONNX Runtime, default one a core. Raises `VdError` for
    jax when there is no JAX form.
    """
    has_jax_form = runs_in_jax(backbone)
    if name == "auto":
        name = "onnxruntime"
        if has_jax_form and before != name and _has_accelerator():
            name = "jax"
        if before and before != name:
            say(
                f"note: features are computed by {name}, those of the run by {before}; they "
                "agree within 1e-4"
            )
    if name == "onnxruntime":
        return OnnxEngine(backbone, threads)
    if not has_jax_form:
        raise VdError(
            f"--engine jax runs only {', '.join(VARIANTS)} and .npz networks, in floats; "
            f"leave it out for {backbone.name}."
        )
    return JaxEngine(backbone)


def runs_in_jax(backbone: Backbone) -> bool:
    """Whether all of its networks are ours, and compute in floats."""
    networks = backbone.networks
    return bool(networks) and not any(network.quantized for network in networks)


class OnnxEngine:
    """ONNX Runtime, one image at a time on every core; bit-identical in any batch.

    Faster than one image on all cores, which wait for each other (docs/performance.md).
    """

    name = "onnxruntime"

    def __init__(self, backbone: Backbone, threads: int | None = None) -> None:
        """Try the networks on a black image; raises `VdError` if one cannot be used."""
        models: list[str | bytes] = [
            network_model(network).SerializeToString() for network in backbone.networks
        ] or [str(backbone.file)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a call runs on the thread that makes it
        options.log_severity_level = 4  # its errors reach us as exceptions
        self._backbone, size = backbone, backbone.size
        self.reads = backbone.places
        try:
            self._sessions = [
                onnxruntime.InferenceSession(
                    model, options, providers=["CPUExecutionProvider"]
                )
                for model in models
            ]
            source = self._sessions[0].get_inputs()[0]  # of ours, all take the same
            self._input, self._raw = source.name, source.type == "tensor(uint8)"
            self._channels_first = source.shape[1] == 3
            for network in range(len(models)):
                features_1xD = self._run(np.zeros((size, size, 3), np.uint8), network)
                if features_1xD.ndim != 2 or not features_1xD.size:
                    raise ValueError(f"it gives the shape {features_1xD.shape}")
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise VdError(
                f"--backbone {backbone.name} cannot be run on RGB images of side {size} "
                f"({str(error).splitlines()[0]}); set --backbone-size, or export it for "
                "batches of any size or of 1, with one vector for each image and with the "
                "files of its weights beside it."
            ) from error
        self.dim = features_1xD.shape[1]
        self.batch = threads or usable_cores()
        self._threads = ThreadPoolExecutor(self.batch)

    def __call__(self, images_NxHxWx3: Images, network: int = 0) -> Features:
        """Features, computed by as many threads as `batch`."""
        parts = []
        run = partial(self._run, network=network)
        for part in self._threads.map(run, images_NxHxWx3):
            check_interrupt()
            parts.append(part)
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def _run(self, image_HxWx3: UInt8[np.ndarray, "H W 3"], network: int) -> Features:
        image: Any = image_HxWx3
        if not self._raw:
            mean, std = np.float32(self._backbone.mean), np.float32(self._backbone.std)
            image = (image.astype(np.float32) - mean) / std
        if self._channels_first:
            image = np.ascontiguousarray(image.transpose(2, 0, 1))
        features_1xD = self._sessions[network].run(None, {self._input: image[None]})[0]
        return features_1xD.astype(np.float32, copy=False)


class JaxEngine:
    """Networks in JAX under pmap on all local devices, with one padded batch shape."""

    name = "jax"
    dim = FEATURES

    def __init__(self, backbone: Backbone) -> None:
        import jax

        from vd.devices import own_numerics, prepare_jax
        from vd.features.efficientnet_jax import image_features, jax_parameters

        prepare_jax()
        self._numerics = own_numerics
        self._devices = jax.local_device_count()
        self.batch = self._devices * _JAX_BATCH
        self.reads = backbone.places
        self._applies = [
            jax.pmap(
                partial(
                    image_features, network.variant, jax_parameters(network.parameters)
                ),
                devices=jax.local_devices(),
            )
            for network in backbone.networks
        ]

    def __call__(self, images_NxHxWx3: Images, network: int = 0) -> Features:
        """Features, a padded batch on all devices at a time."""
        count, shape = len(images_NxHxWx3), images_NxHxWx3.shape[1:]
        padding = ((0, -count % self.batch), (0, 0), (0, 0), (0, 0))
        batches = np.pad(images_NxHxWx3, padding).reshape(
            -(-count // self.batch), self._devices, _JAX_BATCH, *shape
        )
        # all batches are started before the first is waited for
        with self._numerics():
            parts = [self._applies[network](batch) for batch in batches]
        features = [np.zeros((0, self.dim), np.float32)]
        features += [np.asarray(part).reshape(self.batch, self.dim) for part in parts]
        return np.concatenate(features)[:count]


# `batch`: the images that it takes at a time on all cores or devices; `reads`: the places
# of each network's streams among a frame's images
Engine = OnnxEngine | JaxEngine


def _has_accelerator() -> bool:
    """Whether JAX has an accelerator; jax is imported only if a plugin is installed."""
    if not any(find_spec(f"jax_{kind}_plugin") for kind in ("cuda12", "cuda13")):
        return False
    import jax

    return jax.default_backend() != "cpu"
