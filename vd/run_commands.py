"""The commands on finished runs: flags, a call, what is printed; imports as in `vd.commands`."""

import gc
import json
import shutil
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vd.config import (
    PRETRAINED,
    Between,
    DecodeConfig,
    EngineName,
    EventConfig,
    LiveConfig,
    OutputConfig,
    Settings,
)
from vd.console import Interrupted, say, say_limits, track_media
from vd.errors import SOME_FAILED, VdError

if TYPE_CHECKING:
    from vd.predict.predictor import Predictor

_OBJECTS_AT_START = 50_000  # imports make many, and no garbage


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the best checkpoint of a run on one of its splits, or on another data set."""

    checkpoint_dir: Path | None = None
    """The run folder; None, with --on: a copy in runs/pretrained of the detector that comes
    with vd."""
    split: Literal["train", "val", "test", "all"] = "test"
    """The part to evaluate."""
    tta: bool = False
    """Average over the stored views (plain, mirrored) of each clip."""
    dataset_path: Path | None = None
    """Where the data set has moved, if it has."""
    cache_dir: Path | None = None
    """Where the features have moved, if they have."""
    on: Path | None = None
    """Another data set, all of it, with the run's threshold; clips that the run or its
    backbone was trained or validated on, by content or group, are left out."""
    name: str | None = None
    """Name of the files of --on; None: that of the data set."""
    positive_class: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """With --on: a violent class, when its names are not the usual ones; may be repeated."""
    group_from: str | None = None
    """With --on: regular expression that finds a clip's group in its path."""

    def __call__(self) -> int:
        """Write evaluation, predictions and pictures into the run folder; print the metrics."""
        of_own = self.dataset_path or self.split != "test"
        of_other = self.name or self.positive_class or self.group_from
        if of_other if self.on is None else of_own:
            raise VdError(
                "--dataset-path and --split are for the run's own data set, --name, "
                "--positive-class and --group-from for another one; give the former without "
                "--on, the latter with it."
            )
        run_dir = self.checkpoint_dir
        if run_dir is None:
            if self.on is None:
                raise VdError(
                    "vd evaluate needs a run: give --checkpoint-dir, or --on with a data set "
                    "to evaluate the detector that comes with vd."
                )
            run_dir = Path("runs/pretrained")
            shutil.copytree(PRETRAINED, run_dir, dirs_exist_ok=True)
            say(f"detector: the one that comes with vd; its figures go to {run_dir}")
        from vd.devices import prepare_jax
        from vd.evaluation.cross_dataset import evaluate_on
        from vd.evaluation.evaluate import evaluate, summary

        prepare_jax()
        if self.on is None:
            where = self.dataset_path, self.cache_dir
            result = evaluate(run_dir, self.split, self.tta, *where)
        else:
            result = evaluate_on(
                run_dir, self.on, self.name, self.tta, self.cache_dir,
                self.positive_class, self.group_from,
            )  # fmt: skip
        print(json.dumps(result, indent=2))
        say(summary(result))
        say_limits(result["warnings"])
        return 0


@dataclass(frozen=True)
class Compare:
    """Compare runs, or cross-validations, with the first named, clip by clip."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of vd crossval; the first is the baseline, one alone is
    compared with the linear probe beside it."""
    out: Path | None = None
    """Folder for compare.json, compare.csv, roc.png, and curves over seeds as curves.csv and
    curves.png."""

    def __call__(self) -> int:
        """Print the verdicts on standard output, and what limits them."""
        from vd.evaluation.compare import compare, text

        result = compare(self.folders, self.out)
        print(text(result))
        say_limits(result["warnings"])
        return 0


@dataclass(frozen=True)
class Report(Settings):
    """Write a run or a cross-validation as one self-contained page."""

    folder: tyro.conf.Positional[Path]
    """A run folder, or one of vd crossval (vd compare takes several)."""
    out: Path | None = None
    """The page; None: report.html in the folder."""
    mistakes: Annotated[int, Between(0, 100_000)] = 12
    """Misclassified clips to show with frames, which decodes these videos (0: without
    frames, quick)."""
    dataset_path: Path | None = None
    """Where the data set has moved, if it has."""

    def __call__(self) -> int:
        """Say where the page is."""
        from vd.report.report import report

        path = report(self.folder, self.out, self.mistakes, self.dataset_path)
        say(f"written: {path}")
        return 0


@dataclass(frozen=True)
class Predict:
    """Violence over time in video files and streams: JSON lines on standard output."""

    sources: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")]
    ]
    """Video files, folders, quoted patterns ("**/*.mp4"), a .csv with a column path, a .txt
    with a path a line, or - for such a list on standard input. Or streams: addresses (rtsp://
    rtmp:// udp:// http://), numbers of cameras, a .streams with an address a line."""
    checkpoint_dir: Path | None = None
    """The run folder; None: the detector that comes with vd."""
    engine: EngineName = "auto"
    """What runs the backbone."""
    start_time: str | None = None
    """Where to begin in each file: seconds, MM:SS or HH:MM:SS."""
    end_time: str | None = None
    """Where to stop."""
    duration: str | None = None
    """How much to predict from --start-time on, in place of --end-time; of streams from now
    on."""
    events: EventConfig = field(default_factory=EventConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    live: LiveConfig = field(default_factory=LiveConfig)

    def __call__(self) -> int:
        """Exit code 1 when some file or stream could not be done."""
        from vd.predict.sources import find_files, find_streams, parse_between
        from vd.training.run_folder import read_config

        between = parse_between(self.start_time, self.end_time, self.duration)
        streams = find_streams(self.sources)
        if streams and (self.start_time or self.end_time or self.output.out):
            raise VdError(
                "--start-time, --end-time and --out are for files; leave them out for "
                "streams, whose records are the lines on standard output."
            )
        files = [] if streams else find_files(self.sources, out=self.output.out)
        run_dir = self.checkpoint_dir or PRETRAINED
        read_config(run_dir)  # before anything slow is imported
        if self.checkpoint_dir is None:
            card = PRETRAINED / "MODEL_CARD.md"
            say(f"detector: the one that comes with vd, described in {card}")
        gc.set_threshold(_OBJECTS_AT_START)
        from vd.predict.predictor import Predictor

        predictor = Predictor(run_dir, self.engine, self.decode, self.events)
        say(f"events: {predictor.plan}")
        try:
            if streams:
                return self._watch(streams, predictor, between[1])
            return self._predict(files, predictor, between)
        except Interrupted as signal_came:
            signal_came.kept = "what is printed is complete; the rest was not predicted"
            raise

    def _predict(
        self, files: list[str], predictor: "Predictor", between: tuple[float, float]
    ) -> int:
        """Predict files."""
        from vd.predict.outputs import outputs, report

        failed = False
        with (
            outputs(self.output, files, predictor.plan.rules, between) as written,
            track_media("predicting") as ticker,
        ):
            predictions = predictor.predict(files, between=between, progress=ticker)
            for name, prediction in zip(files, predictions, strict=True):
                failed |= prediction.probability is None
                report(name, prediction)
                ticker.make_room()
                print(json.dumps(prediction.to_dict() | {"path": name}), flush=True)
                if written:
                    written.add(name, prediction)
        return SOME_FAILED if failed else 0

    def _watch(self, streams: list[str], predictor: "Predictor", seconds: float) -> int:
        """Watch streams for so long; failed is one that has ended and gave no frame."""
        from vd.predict.watch import watch

        failed = False
        with closing(watch(streams, predictor, self.live, seconds)) as records:
            for record in records:
                ended = record["type"] == "status" and record["state"] == "ended"
                failed |= ended and not record["frames"]
                print(json.dumps(record), flush=True)
        return SOME_FAILED if failed else 0


@dataclass(frozen=True)
class Export:
    """Write a run for other runtimes, and measure what it differs from vd by."""

    run: tyro.conf.Positional[Path | None] = None
    """The run folder; None: the detector that comes with vd."""
    out: Path = Path("export")
    """Folder for the models, parity.json, and with onnx example.py, which needs only NumPy,
    OpenCV and ONNX Runtime."""
    format: Literal["onnx", "stablehlo"] = "onnx"
    """ONNX: backbone, head and both joined; StableHLO: backbone and head, your own too."""
    dataset_path: Path | None = None
    """Where the data set has moved, if it has: up to 20 test clips are compared."""

    def __call__(self) -> int:
        """Print the content of parity.json."""
        from vd.devices import prepare_jax
        from vd.export.export import export

        prepare_jax()
        run_dir = self.run or PRETRAINED
        parity = export(run_dir, self.format, self.out, self.dataset_path)
        print(json.dumps(parity, indent=2))
        return 0
