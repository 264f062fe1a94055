"""A head, of vd or a user's own, and the backbone as StableHLO by `jax.export`.

Each is written twice: as StableHLO (`.mlirbc`, its portable bytecode) and with what JAX needs
to call it again (`.jax`, for `jax.export.deserialize`). Parameters are inside.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vd.devices import own_numerics
from vd.errors import VdError
from vd.evaluation.restore import Restored
from vd.export.parity import HeadFunction
from vd.features.backbone import Backbone
from vd.features.efficientnet_jax import image_features, jax_parameters
from vd.files import write_bytes
from vd.models.head import apply
from vd.models.scoring import window_batches


def write_head(restored: Restored, out: Path) -> None:
    """Features, float16 B×T×D, and mask, float32 B×T, to logits, float32 B."""
    frames, dim = restored.config.model.clip_frames, restored.dim
    function = partial(apply, restored.head, restored.params)
    name = f"head {type(restored.head).__name__}"
    shapes = ((frames, dim), np.float16), ((frames,), np.float32)
    _write(function, shapes, out / "head", name)


def head_function(out: Path, frames: int) -> HeadFunction:
    """What the written head computes for windows of up to `frames` frames."""
    exported = jax.export.deserialize(bytearray((out / "head.jax").read_bytes()))

    def logits(windows: Sequence[np.ndarray]) -> np.ndarray:
        parts = [
            np.asarray(exported.call(batch.features_BxTxD, batch.mask_BxT))[
                batch.owner_B >= 0
            ]
            for batch in window_batches([[window] for window in windows], frames)
        ]
        return np.concatenate(parts)

    return logits


def write_backbone(backbone: Backbone, out: Path) -> None:
    """Images, uint8 B×side×side×3, to features, float32 B×D.

    Of several networks the images are those of frames, B×S×side×side×3.
    """
    image, variant = (backbone.size, backbone.size, 3), backbone.networks[0].variant
    functions = [
        partial(image_features, network.variant, jax_parameters(network.parameters))
        for network in backbone.networks
    ]

    def frame_features(images_BxSxHxWx3: jax.Array) -> jax.Array:
        parts = [
            function(images_BxSxHxWx3[:, place])
            for function, places in zip(functions, backbone.places, strict=True)
            for place in places
        ]
        return jnp.concatenate(parts, axis=1)

    several = len(functions) > 1
    shape = (len(backbone.streams), *image) if several else image
    function = frame_features if several else functions[0]
    _write(function, [(shape, np.uint8)], out / "backbone", f"backbone {variant}")


@own_numerics()
def _write(function: Callable[..., Any], shapes: Any, path: Path, name: str) -> None:
    """Export a function of arrays of these shapes and dtypes, with a batch of any size B."""
    (batch,) = jax.export.symbolic_shape("B")
    arrays = [jax.ShapeDtypeStruct((batch, *shape), kind) for shape, kind in shapes]
    try:
        exported = jax.export.export(
            jax.jit(function),
            # it runs on other devices too than where it was exported
            disabled_checks=[jax.export.DisabledSafetyCheck.platform()],
        )(*arrays)
    except Exception as error:  # whatever a user's head raises
        raise VdError(
            f"the {name} cannot be exported for batches of any size "
            f"({str(error).splitlines()[0]}); it must not depend on the number of clips."
        ) from error
    write_bytes(path.with_suffix(".mlirbc"), exported.mlir_module_serialized)
    write_bytes(path.with_suffix(".jax"), bytes(exported.serialize()))
