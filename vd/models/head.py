"""`Head`: what a run trains, the detector of `vd` or a user's own (docs/extending.md).

A head draws no random numbers: dropout masks are arguments. So a training step depends on
(seed, step, index in the batch), and not on the number of devices.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, PRNGKeyArray

from vd.config import Config, ModelConfig
from vd.errors import VdError
from vd.models.plugins import Plugins

Params = Any  # Flax's nested dictionary of float32 arrays


class Head(nn.Module):
    """Maps the features of clips to logits of violence.

    A subclass defines `__call__`, and `draw_dropout` if it uses dropout. It may define
    `fit_statistics` and `scale_updates`. Its own fields are settings beside those in `config`.
    """

    config: ModelConfig

    def __call__(
        self, features_BxTxD: Any, mask_BxT: Any, dropout: Any = None
    ) -> Float[Array, " B"]:
        """Returns float32 logits; frames whose mask is 0 must change nothing.

        `dropout` holds the masks of `draw_dropout` for each clip; it is None when scoring.
        """
        raise NotImplementedError

    def draw_dropout(self, key: PRNGKeyArray) -> Any:
        """Dropout masks of one clip, any tree of arrays, from its key for this step."""
        return None

    def fit_statistics(
        self, params: Params, clips: Iterable[Float16[np.ndarray, "F D"]]
    ) -> Params:
        """Initial parameters with what comes from the training clips, such as their mean.

        `clips` are all stored frames of each training clip, in the plain view.
        """
        return params

    def scale_updates(self, updates: Params) -> Params:
        """The optimizer's updates of a step, of which a head may make some smaller."""
        return updates


def init_params(head: Head, dim: int, key: PRNGKeyArray) -> Params:
    """Initial float32 parameters for features of `dim` values a frame."""
    frames = head.config.clip_frames
    features_1xTxD = jnp.zeros((1, frames, dim), jnp.float32)
    mask_1xT = jnp.ones((1, frames), jnp.float32)
    # compiled: one operation at a time takes seconds
    return jax.jit(head.init)(key, features_1xTxD, mask_1xT)["params"]


def apply(
    head: Head, params: Params, features_BxTxD: Any, mask_BxT: Any, dropout: Any = None
) -> Float[Array, " B"]:
    """The head's float32 logits with `params`; arguments as in `Head.__call__`."""
    return head.apply({"params": params}, features_BxTxD, mask_BxT, dropout)  # type: ignore[return-value]  # Linen's apply may also return mutated variables


def check_shapes(plugins: Plugins, config: Config, dim: int) -> None:
    """Raise `VdError` unless head and loss give a float32 a clip; nothing is computed."""
    from vd.models.losses import clip_losses  # optax, which prediction does not need

    head, frames = plugins.make_head(config.model), config.model.clip_frames
    features_BxTxD = jax.ShapeDtypeStruct((2, frames, dim), jnp.float16)
    mask_BxT = jax.ShapeDtypeStruct((2, frames), jnp.float32)
    clips_B = jax.ShapeDtypeStruct((2,), jnp.float32)
    logits_B, _ = jax.eval_shape(
        head.init_with_output, jax.random.key(0), features_BxTxD, mask_BxT
    )
    losses_B = jax.eval_shape(
        partial(clip_losses, plugins.loss, settings=config.training), clips_B, clips_B
    )
    loss = getattr(plugins.loss, "__name__", "")
    results = {f"head {type(head).__name__}": logits_B, f"loss {loss}": losses_B}
    for name, result in results.items():
        if result.shape != (2,) or result.dtype != jnp.float32:
            raise VdError(
                f"the {name} gives {result.dtype}{list(result.shape)} for 2 clips; it must "
                "give float32[2]."
            )
