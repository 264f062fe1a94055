"""Statistics of the training clips, by which the detector standardises its features."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32, Float64

from vd.models.pooling import mean_and_change_of

_LEAST = 1e-6  # a deviation below it is 1: the feature is constant


@dataclass
class _Moments:
    """Mean and sum of squared differences from it, of sets of rows added one by one."""

    count: int = 0
    mean_D: Float64[np.ndarray, " D"] | float = 0.0
    squares_D: Float64[np.ndarray, " D"] | float = 0.0

    def add(
        self,
        count: int,
        mean_D: Float64[np.ndarray, " D"],
        squares_D: Float64[np.ndarray, " D"] | float,
    ) -> None:
        """Add `count` rows (Chan, Golub and LeVeque 1979, "Updating formulae")."""
        total = self.count + count
        step_D = mean_D - self.mean_D
        self.squares_D += squares_D + step_D**2 * (self.count * count / total)
        self.mean_D += step_D * (count / total)
        self.count = total

    def result(self) -> tuple[Float32[np.ndarray, " D"], Float32[np.ndarray, " D"]]:
        """Mean and deviation."""
        deviation_D = np.sqrt(self.squares_D / self.count)
        deviation_D = np.where(deviation_D < _LEAST, 1.0, deviation_D)
        return np.asarray(self.mean_D, np.float32), deviation_D.astype(np.float32)


def clip_statistics(
    clips: Iterable[Float16[np.ndarray, "F D"]],
) -> dict[str, Float32[np.ndarray, "..."]]:
    """The detector's fixed parameters, from all stored frames of the training clips.

    `frame_mean` and `frame_deviation` (D) are over all frames. A clip's `mean_and_change`
    is one row: `clip_mean` and `clip_deviation` (2D) are over these rows. Sums are in
    float64, in the order of the clips.
    """
    frames, pooled = _Moments(), _Moments()
    for clip_FxD in clips:
        x_FxD = clip_FxD.astype(np.float64)
        count, mean_D, deviation_D = len(x_FxD), x_FxD.mean(0), x_FxD.std(0)
        frames.add(count, mean_D, count * deviation_D**2)
        pooled.add(1, mean_and_change_of(clip_FxD).astype(np.float64), 0.0)
    result = {}
    for name, moments in ("frame", frames), ("clip", pooled):
        result[f"{name}_mean"], result[f"{name}_deviation"] = moments.result()
    return result
