"""Heads that the study `heads.py` compares: a linear path, the detector, or their sum."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import probe
from jaxtyping import Array, Float, Float16, PRNGKeyArray, Shaped

from vd.models.detector import Detector, DropoutMasks
from vd.models.head import Head, Params
from vd.models.lstm import dense
from vd.models.pooling import mean_and_change, mean_and_change_of

# parameters that come from the training part's clips and are not trained
STATISTICS = (
    "frame_mean",
    "frame_deviation",
    "pooled_mean",
    "pooled_deviation",
    "components",
)
_LEAST = 1e-6  # a deviation below it is 1: the feature is constant

Clips = Sequence[Float16[np.ndarray, "F D"]]


class PathDropout(NamedTuple):
    """Masks of the detector's input features, and the detector's own."""

    features_BxD: Float[Array, "B D"]
    detector: DropoutMasks | None


class PathsHead(Head):
    """The sum of a linear path from statistics over time, and the detector.

    `fitted` gives the parameters their statistics of the training part.
    """

    linear: bool = True
    change: bool = False
    """The linear path reads mean and change, as vd's does, not mean and deviation."""
    recurrent: bool = True
    standardised: bool = True
    """Standardise the detector's frames; the linear path always is."""
    correction: bool = False
    """The detector's last layer begins at 0, so that the linear path begins alone."""
    components: int = 0
    """Principal components of a standardised frame that the detector gets (0: features)."""
    input_size: int = 0
    """Features of a frame; needed for `input_dropout` alone."""
    input_dropout: float = 0.0
    """Share of the detector's input features dropped, the same ones in all frames."""

    @nn.compact
    def __call__(
        self,
        features_BxTxD: Shaped[Array, "B T D"],
        mask_BxT: Shaped[Array, "B T"],
        dropout: PathDropout | None = None,
    ) -> Float[Array, " B"]:
        """Returns float32 logits; frames whose mask is 0 change nothing."""
        x_BxTxD = features_BxTxD.astype(jnp.float32)
        logit_B = jnp.zeros(len(x_BxTxD), jnp.float32)
        if self.linear:
            pool = mean_and_change if self.change else mean_and_deviation
            pooled_Bx2D = pool(x_BxTxD, mask_BxT)
            pooled_Bx2D = self._standardise("pooled", pooled_Bx2D)
            path = dense(1, "linear", kernel_init=nn.initializers.zeros)
            logit_B = logit_B + path(pooled_Bx2D)[:, 0]
        if self.recurrent:
            if self.standardised:
                x_BxTxD = self._standardise("frame", x_BxTxD)
            if self.components:
                x_BxTxD = jnp.matmul(
                    x_BxTxD,
                    self._fixed("components", x_BxTxD.shape[-1], self.components),
                )
            if self.input_dropout and dropout is not None:
                x_BxTxD = x_BxTxD * dropout.features_BxD[:, None]
            detector = Detector(self.config, name="detector")
            own = None if dropout is None else dropout.detector
            logit_B = logit_B + detector(x_BxTxD, mask_BxT, own)
        return logit_B

    def draw_dropout(self, key: PRNGKeyArray) -> PathDropout | None:
        """Masks of one clip."""
        if not self.recurrent:
            return None
        first, second = jax.random.split(key)
        keep = 1.0 - self.input_dropout
        kept_D = jax.random.bernoulli(second, keep, (self.input_size,))
        detector = Detector(self.config, parent=None)
        return PathDropout(kept_D / keep, detector.draw_dropout(first))

    def _standardise(self, name: str, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """(x − mean) / deviation of the training part."""
        over_batch = (1,) * (x.ndim - 1) + (-1,)
        mean, deviation = (
            self._fixed(f"{name}_{what}", x.shape[-1]).reshape(over_batch)
            for what in ("mean", "deviation")
        )
        return (x - mean) / deviation

    def _fixed(self, name: str, *shape: int) -> Array:
        """A parameter that `fitted` sets and that gets no gradient."""
        value = self.param(name, nn.initializers.ones, shape)
        return jax.lax.stop_gradient(value)


def mean_and_deviation(
    x_BxTxD: Float[Array, "B T D"], mask_BxT: Shaped[Array, "B T"]
) -> Float[Array, "B 2D"]:
    """Each clip's mean and deviation over its frames whose mask is not 0."""
    present_BxTx1 = mask_BxT[..., None] > 0
    mean_BxD = jnp.mean(x_BxTxD, axis=1, where=present_BxTx1)
    deviation_BxD = jnp.std(x_BxTxD, axis=1, where=present_BxTx1)
    return jnp.concatenate([mean_BxD, deviation_BxD], axis=-1)


def fitted(head: Head, params: Params, clips: Clips) -> Params:
    """Initial parameters with the statistics of the training part's `clips`.

    The detector's last layer becomes 0 where it is a correction.
    """
    if not isinstance(head, PathsHead):
        return params
    params = {
        **params,
        **statistics(
            set(params) & set(STATISTICS), clips, head.components, head.change
        ),
    }
    if head.correction and head.recurrent:
        last = jax.tree.map(jnp.zeros_like, params["detector"]["logit"])
        params["detector"] = {**params["detector"], "logit": last}
    return params


def statistics(
    names: set[str], clips: Clips, components: int, change: bool = False
) -> dict[str, Float[np.ndarray, "..."]]:
    """The named fixed parameters; each frame of each clip counts once."""
    result = {}
    if "pooled_mean" in names:
        pool = mean_and_change_of if change else probe.mean_and_deviation
        pooled_NxP = np.array([pool(clip) for clip in clips])
        result["pooled_mean"], result["pooled_deviation"] = moments(pooled_NxP)
    if "frame_mean" in names:
        frames_RxD = np.concatenate(clips).astype(np.float32)
        mean_D, deviation_D = moments(frames_RxD)
        result["frame_mean"], result["frame_deviation"] = mean_D, deviation_D
        if "components" in names:
            standardised_RxD = (frames_RxD - mean_D) / deviation_D
            result["components"] = whitening(standardised_RxD, components)
    return result


def moments(
    x_NxD: Float[np.ndarray, "N D"],
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
    """Mean and deviation of each column; 1 for a deviation of 0."""
    deviation_D = x_NxD.std(0, dtype=np.float64)
    deviation_D = np.where(deviation_D < _LEAST, 1.0, deviation_D)
    mean_D = x_NxD.mean(0, dtype=np.float64)
    return mean_D.astype(np.float32), deviation_D.astype(np.float32)


def whitening(x_RxD: Float[np.ndarray, "R D"], count: int) -> Float[np.ndarray, "D K"]:
    """The first principal axes of centred rows, scaled to variance 1 along each."""
    from scipy.linalg import eigh

    rows = len(x_RxD)
    # through the smaller product of the two
    if rows < x_RxD.shape[1]:
        value_K, vector_RxK = eigh(
            x_RxD @ x_RxD.T, subset_by_index=(rows - count, rows - 1)
        )
        axes_DxK = x_RxD.T @ (vector_RxK / np.sqrt(value_K))
    else:
        last = x_RxD.shape[1] - 1
        value_K, axes_DxK = eigh(
            x_RxD.T @ x_RxD, subset_by_index=(last + 1 - count, last)
        )
    result: np.ndarray = axes_DxK[:, ::-1] / np.sqrt(value_K[::-1] / rows)
    return result.astype(np.float32)
