"""Prediction: files in, probabilities and events out, by the very path that evaluation takes."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float64

from vd.config import PRETRAINED, Config, DecodeConfig, EngineName, EventConfig
from vd.console import result_of
from vd.data.clock import FRAMES_PER_SECOND
from vd.data.decode import WHOLE, FrameSettings
from vd.errors import VdError
from vd.evaluation.restore import (
    Restored,
    check_features,
    moved,
    read_calibration,
    restore,
)
from vd.features.backbone import find_backbone
from vd.features.engines import make_engine
from vd.features.extract import video_stretches
from vd.features.sampling import window_length
from vd.files import read_csv
from vd.metrics.calibration import Calibration
from vd.predict.frames import Image, frame_stretches
from vd.predict.hysteresis import EventRules
from vd.predict.live import LiveSource, LiveStream, Pipeline
from vd.predict.recording import Prediction, Recording
from vd.predict.windows import Cutter, Features
from vd.training.run_folder import read_config, read_settings

_END_SHARE = 2 / 3  # of the threshold, under which an event closes


def load(
    run_dir: Path | str = PRETRAINED,
    engine: EngineName = "auto",
    events: EventConfig = EventConfig(),  # noqa: B008  # immutable
) -> "Predictor":
    """The detector of a finished run, or the one that comes with vd; `vd.load` is the same.

    Raises `VdError` when training has not ended or a file of the run is missing.
    """
    predictor = Predictor(Path(run_dir), engine, events=events)
    predictor.wait()
    return predictor


@dataclass(frozen=True)
class EventPlan:
    """How events are found: the rules, the windows, and where the threshold comes from."""

    rules: EventRules
    window_seconds: float
    threshold_source: str

    def __str__(self) -> str:
        return (
            f"windows of {self.window_seconds:g} s each {self.rules.stride_seconds:g} s; "
            f"open at {self.rules.threshold:.3f} ({self.threshold_source}), close under "
            f"{self.rules.end_threshold:.3f}"
        )


class Progress(Protocol):
    """Is told how far prediction has come; `vd.console.MediaTicker` is one."""

    def expect(self, seconds: float) -> None:
        """The length of all files together, about."""

    def reach(self, file: int, seconds: float) -> None:
        """So many seconds of a file are done, and all files before it."""


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
        events: EventConfig = EventConfig(),  # noqa: B008  # immutable
    ) -> None:
        config = moved(read_settings(run_dir), run_dir, None, None)
        self.plan = plan_events(run_dir, config, events)
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

    def predict(
        self,
        source: Path | str | Sequence[Path | str] | Iterable[Image],
        fps: float | None = None,
        between: tuple[float, float] = WHOLE,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Probability of violence of each file and its events, in order, as each is done.

        `between` are two times in seconds, outside which nothing is predicted.

        With `fps`, `source` is one video's RGB frames at this rate, uint8 of shape (height,
        width, 3): an array of them, or any iterable, which is taken once and not kept. Its
        one prediction has the path `frames`. It differs a little from that of a file with
        these frames, which is resized and converted to RGB in one step:
        docs/data_format.md says by how much. Raises `VdError` for anything else.
        """
        if fps is not None:
            if isinstance(source, Path | str) or between != WHOLE:
                raise VdError(
                    "predict() was given fps, which is for frames, with a path or two "
                    "times; leave fps out for files, and slice frames yourself."
                )
            return self._predict_frames(source, fps)
        names: Any = [source] if isinstance(source, Path | str) else source
        if not isinstance(names, Sequence) or not all(
            isinstance(name, Path | str) for name in names
        ):
            raise VdError(
                "predict() was given neither a path nor a list of paths; give frames "
                "together with fps, how many of them a second has."
            )
        return self._predict_files(list(map(Path, names)), between, progress)

    def _predict_files(
        self,
        paths: Sequence[Path],
        between: tuple[float, float],
        progress: Progress | None,
    ) -> Iterator[Prediction]:
        """The predictions of files."""
        stretches = video_stretches(
            paths, self._backbone, self._engine, self._decode, between,
            progress.expect if progress else None,
        )  # fmt: skip
        for index, own in groupby(stretches, lambda stretch: stretch.video):
            recording = self._recording()
            for stretch in own:
                recording.take(stretch)
                if progress and len(stretch.seconds_F):
                    progress.reach(index, float(stretch.seconds_F[-1]) - between[0])
                if stretch.outcome is not None:
                    yield recording.finish(paths[index], stretch.outcome, between)

    def _predict_frames(self, frames: Any, fps: float) -> Iterator[Prediction]:
        """The prediction of one video's frames."""
        recording = self._recording()
        for stretch in frame_stretches(frames, fps, self.frames, self._engine):
            recording.take(stretch)
            if stretch.outcome is not None:
                yield recording.finish(Path("frames"), stretch.outcome, WHOLE)

    def stream(self, source: str = "stream") -> LiveStream:
        """A stream to push frames into; `source` is its name in the records."""
        return LiveStream(self.pipeline(), self.live_source(source), self.frames)

    @property
    def frames(self) -> FrameSettings:
        """The frames that the backbone takes of a video."""
        return self._backbone.frames

    def pipeline(self) -> Pipeline:
        """The backbone and the head, for streams; compiled, so that no frame waits for it."""
        self._probabilities([np.zeros((1, self._restored.dim), np.float16)])
        return Pipeline(self._engine, self._probabilities)

    def live_source(self, name: str) -> LiveSource:
        """A stream that begins."""
        frames, plan = self._restored.config.model.clip_frames, self.plan
        return LiveSource(name, frames, plan.window_seconds, plan.rules)

    def _probabilities(self, windows: Sequence[Features]) -> Float64[np.ndarray, " N"]:
        """Probability of violence in windows."""
        logit_N = self._score([features_LxD] for features_LxD in windows)
        return self._restored.calibration.probability(logit_N)

    def _recording(self) -> Recording:
        """A file that begins."""
        plan, fitted = self.plan, self._restored.calibration
        cutter = Cutter(
            self._restored.config.model.clip_frames,
            plan.window_seconds,
            plan.rules.stride_seconds,
        )
        return Recording(self._score, fitted, plan.rules, cutter)

    def _score(self, views: Iterable[Sequence[Features]]) -> Float64[np.ndarray, " N"]:
        """Logits of clips, as validation and evaluation have them."""
        from vd.models.scoring import score  # by now JAX is imported

        return score(self._restored.head, self._restored.params, views)


def _restore(run_dir: Path) -> Restored:
    """Start JAX, and restore the run."""
    from vd.devices import prepare_jax

    prepare_jax()
    return restore(run_dir)


def plan_events(run_dir: Path, config: Config, events: EventConfig) -> EventPlan:
    """The rules that settings and a run's calibration give; raises `VdError` for wrong ones."""
    fitted = read_calibration(run_dir)
    length = events.window_seconds or _window_seconds(run_dir, config, fitted)
    longest = config.model.clip_frames / FRAMES_PER_SECOND
    if length > longest:
        raise VdError(
            f"--window-seconds {length:g} is longer than what the detector sees at once, "
            f"{longest:g} s; give at most that."
        )
    if events.stride_seconds > length:
        raise VdError(
            f"--stride-seconds {events.stride_seconds:g} is longer than a window of "
            f"{length:g} s, so that nothing would see what lies between two windows; give "
            "a shorter stride, or a longer --window-seconds."
        )
    threshold, source = _event_threshold(fitted, events, length)
    closing = events.end_threshold
    if closing is not None and closing > threshold:
        raise VdError(
            f"--end-threshold {closing:g} is above the threshold at which events open, "
            f"{threshold:.3g}; give a lower one, or leave it out for two thirds of that."
        )
    rules = EventRules(
        threshold,
        _END_SHARE * threshold if closing is None else closing,
        events.stride_seconds,
        events.min_event_seconds,
        events.merge_seconds,
        events.max_event_seconds,
    )
    if rules.max_seconds < max(rules.min_seconds, rules.stride_seconds):
        raise VdError(
            f"--max-event-seconds {rules.max_seconds:g} is less than --min-event-seconds "
            "or --stride-seconds; give a larger one."
        )
    return EventPlan(rules, length, source)


def _event_threshold(
    fitted: Calibration, events: EventConfig, length: float
) -> tuple[float, str]:
    """The probability at which an event opens, and where it comes from."""
    if events.threshold is not None:
        return events.threshold, "--threshold"
    if fitted.event_threshold is None:
        source = f"the threshold of whole clips ({fitted.threshold_source})"
        return fitted.threshold, f"{source}, as the run has none of windows"
    source = f"{fitted.event_threshold_source}, {fitted.calm_hours:.2g} hours of them"
    if (length, events.stride_seconds) != (
        fitted.window_seconds,
        fitted.stride_seconds,
    ):
        source += (
            f"; fitted with windows of {fitted.window_seconds:g} s each "
            f"{fitted.stride_seconds:g} s"
        )
    return fitted.event_threshold, source


def _window_seconds(run_dir: Path, config: Config, fitted: Calibration) -> float:
    """Length of a window that a run was calibrated with, or would be."""
    if fitted.window_seconds is not None:
        return fitted.window_seconds
    rows = read_csv(run_dir / "ledger.csv")
    known = [
        float(row["duration"])
        for row in rows
        if row["split"] == "train" and row["outcome"] != "quarantined"
    ]
    frames = config.model.clip_frames
    return window_length(np.array(known or [frames / FRAMES_PER_SECOND]), frames)
