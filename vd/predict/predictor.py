"""Prediction: files in, probabilities out, by the very path that evaluation takes."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, Float64

from vd.config import DecodeConfig, EngineName
from vd.console import result_of
from vd.data.decode import FrameSettings
from vd.data.manifest import CLASSES
from vd.data.outcome import Outcome
from vd.evaluation.restore import Restored, check_features, moved, restore
from vd.features.backbone import find_backbone
from vd.features.engines import make_engine
from vd.features.extract import VideoFeatures, video_features
from vd.training.run_folder import read_config, read_settings

_ROUNDING = 1e-6  # seconds


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
    predictor = Predictor(Path(run_dir), engine)
    predictor.wait()
    return predictor


class Timeline(NamedTuple):
    """Probability of violence in windows of a video, at their middles in seconds."""

    seconds_W: Float64[np.ndarray, " W"]
    probability_W: Float64[np.ndarray, " W"]
    threshold: float


class Predictor:
    """A trained run, from its folder alone.

    `engine` "auto" takes the engine of the run's features where it can. The head is restored
    in the background, because importing JAX takes as long as the first video; an error of it
    is raised by `wait`, or by the first prediction.
    """

    def __init__(
        self,
        run_dir: Path,
        engine: EngineName = "auto",
        decode: DecodeConfig | None = None,
    ) -> None:
        config = moved(read_settings(run_dir), run_dir, None, None)
        self._decode = decode or config.decode
        self._backbone = find_backbone(config.backbone)
        check_features(self._backbone, run_dir)
        before = read_config(run_dir)["engine"]
        self._engine = make_engine(self._backbone, engine, before)
        self._restoring = ThreadPoolExecutor(1).submit(_restore, run_dir)

    def wait(self) -> None:
        """Wait for the head; raises `VdError` when the run cannot be restored."""
        self._restored  # noqa: B018  # a property

    @property
    def _restored(self) -> Restored:
        return result_of(self._restoring)

    def predict(self, files: Sequence[Path | str]) -> Iterator[Prediction]:
        """Probability of violence of each file, in order, as each is done."""
        paths = list(map(Path, files))
        for path, video in zip(paths, self._features(paths), strict=True):
            probability = label = None
            if len(video.seconds_F):
                probability = float(self._probability([[video.features_FxSD]])[0])
                label = CLASSES[probability >= self._restored.calibration.threshold]
            yield Prediction(path, video.outcome, probability, label)

    def timeline(
        self,
        path: Path | str,
        window_seconds: float = 2.0,
        stride_seconds: float = 0.25,
    ) -> Timeline | None:
        """Probability in sliding windows over one video; None when it cannot be decoded.

        No window spans a gap in the video's time.
        """
        (video,) = self._features([Path(path)])
        if not len(video.seconds_F):
            return None
        middle_W, windows = sliding_windows(
            video.seconds_F, video.outcome.gaps, window_seconds, stride_seconds
        )
        one_by_one = ([video.features_FxSD[window]] for window in windows)
        probability_W = self._probability(one_by_one)
        return Timeline(middle_W, probability_W, self._restored.calibration.threshold)

    def _probability(
        self, views: Iterable[Sequence[Float16[np.ndarray, "F D"]]]
    ) -> Float64[np.ndarray, " N"]:
        """Probability of violence of clips, as `vd.models.scoring.score` takes them."""
        restored = self._restored
        from vd.models.scoring import score  # by now JAX is imported

        logit_N = score(restored.head, restored.params, views)
        return restored.calibration.probability(logit_N)

    def _features(self, paths: Sequence[Path]) -> Iterator[VideoFeatures]:
        return video_features(paths, self._backbone, self._engine, self._decode)


def _restore(run_dir: Path) -> Restored:
    """Start JAX, and restore the run."""
    from vd.devices import prepare_jax

    prepare_jax()
    return restore(run_dir)


def sliding_windows(
    seconds_F: Float64[np.ndarray, " F"],
    gaps: Sequence[tuple[float, float]],
    length: float,
    stride: float,
) -> tuple[Float64[np.ndarray, " W"], list[slice]]:
    """Middles, in seconds, and frames of windows of `length` seconds, each `stride` seconds.

    None spans a gap (start, length); a piece between gaps that is shorter is one window.
    """
    step = 1 / FrameSettings().frames_per_second
    cuts = np.searchsorted(seconds_F, [start + gap / 2 for start, gap in gaps])
    middles, windows = [], []
    for first, end in pairwise([0, *cuts, len(seconds_F)]):
        if first == end:
            continue
        begin, span = seconds_F[first], seconds_F[end - 1] - seconds_F[first] + step
        window = min(length, span)
        for start in begin + np.arange(0, span - window + _ROUNDING, stride):
            frames = slice(*np.searchsorted(seconds_F, [start, start + window]))
            if frames.start < frames.stop:  # a slow video has windows without a frame
                middles.append(start + window / 2)
                windows.append(frames)
    return np.array(middles), windows
