"""Prediction: files in, probabilities out, by the very path that evaluation takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from vd import plots
from vd.config import DecodeConfig, EngineName
from vd.data.decode import FrameSettings
from vd.data.manifest import CLASSES
from vd.data.outcome import Outcome
from vd.devices import prepare_jax
from vd.errors import VdError
from vd.evaluation.restore import check_features, moved, restore
from vd.features.backbone import find_backbone
from vd.features.engines import make_engine
from vd.features.extract import VideoFeatures, video_features
from vd.models.scoring import score
from vd.training.run_folder import read_config


@dataclass(frozen=True)
class Prediction:
    """What the detector says of one file; `probability` and `label` None when it failed."""

    path: Path
    outcome: Outcome
    probability: float | None
    label: str | None


def load(run_dir: Path | str, engine: EngineName = "auto") -> "Predictor":
    """The detector of a finished run, from its folder alone; `vd.load` is the same.

    Raises `VdError` when training has not ended or a file of the run is missing.
    """
    prepare_jax()
    return Predictor(Path(run_dir), engine)


@dataclass(frozen=True)
class Timeline:
    """Probability of violence in windows of a video, at their middles in seconds."""

    seconds_W: Float64[np.ndarray, " W"]
    probability_W: Float64[np.ndarray, " W"]
    threshold: float


class Predictor:
    """A trained run, from its folder alone.

    `engine` "auto" takes the engine of the run's features where it can.
    """

    def __init__(
        self,
        run_dir: Path,
        engine: EngineName = "auto",
        decode: DecodeConfig | None = None,
    ) -> None:
        self._restored = restore(run_dir)
        config = moved(self._restored.config, run_dir, None, None)
        self._decode = decode or config.decode
        self._backbone = find_backbone(config.backbone)
        check_features(self._backbone, run_dir)
        before = read_config(run_dir)["engine"]
        self._engine = make_engine(self._backbone, engine, before)

    def predict(self, paths: Sequence[Path]) -> Iterator[Prediction]:
        """Probability of violence of each file, in order, as each is done."""
        for made in self._features(paths):
            probability = label = None
            if made.features_VxFxSxD is not None:
                logit = score(
                    self._restored.head, self._restored.params, [[_flat(made)]]
                )[0]
                fitted = self._restored.calibration
                probability = float(fitted.probability(logit))
                label = CLASSES[probability >= fitted.threshold]
            yield Prediction(paths[made.index], made.outcome, probability, label)

    def timeline(
        self, path: Path, window_seconds: float = 2.0, stride_seconds: float = 0.25
    ) -> Timeline | None:
        """Probability in sliding windows over one video; None when it cannot be decoded.

        Stored frames are taken to be evenly spaced over the video.
        """
        (made,) = self._features([path])
        if made.features_VxFxSxD is None:
            return None
        features_FxD = _flat(made)
        rate = min(FrameSettings().frames_per_second, made.outcome.fps)
        length = max(1, min(round(window_seconds * rate), len(features_FxD)))
        stride = max(1, round(stride_seconds * rate))
        starts = np.arange(0, len(features_FxD) - length + 1, stride)
        windows = ([features_FxD[start : start + length]] for start in starts)
        logit_W = score(self._restored.head, self._restored.params, windows)
        fitted = self._restored.calibration
        middles_W = (starts + length / 2) / rate
        return Timeline(middles_W, fitted.probability(logit_W), fitted.threshold)

    def _features(self, paths: Sequence[Path]) -> Iterator[VideoFeatures]:
        """Features of the plain view, in the float16 that the store would hold."""
        return video_features(
            paths, self._backbone, self._engine, self._decode, self._backbone.views[:1]
        )


def draw_timeline(
    run_dir: Path,
    video: Path,
    picture: Path,
    violent_spans: Sequence[tuple[float, float]] = (),
) -> None:
    """Draw the probability of violence over a video; known violent spans are shaded.

    Raises `VdError` when the video cannot be decoded.
    """
    made = Predictor(run_dir).timeline(video)
    if made is None:
        raise VdError(f"{video} cannot be decoded; run vd scan on it to see why.")
    figure = plots.timeline(
        made.seconds_W, made.probability_W, made.threshold, violent_spans
    )
    plots.save(figure, picture)


def _flat(made: VideoFeatures) -> np.ndarray:
    """The plain view's features, streams side by side, as the store reads them."""
    assert made.features_VxFxSxD is not None
    plain_FxSxD = made.features_VxFxSxD[0]
    flat: np.ndarray = plain_FxSxD.reshape(len(plain_FxSxD), -1)
    return flat
