"""The command line: one subcommand for each task; parses, calls, prints; nothing else.

Heavy modules are imported by the command that needs them, so that help and errors are
quick.
"""

import argparse
import atexit
import gc
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vd import __version__
from vd.config import (
    ADAPTATION,
    ADAPTED_MODEL,
    PRETRAINED,
    AdaptConfig,
    BackboneConfig,
    Between,
    Config,
    DataConfig,
    DecodeConfig,
    EngineName,
    EventConfig,
    ExecutorConfig,
    LiveConfig,
    OutputConfig,
    RunConfig,
    Settings,
    SplitConfig,
    TrainingConfig,
)
from vd.console import Interrupted, listen, say, say_limits, track_media
from vd.errors import SOME_FAILED, USAGE, VdError
from vd.training.distributed import LOST, end, processes

if TYPE_CHECKING:
    from vd.models.head import Head
    from vd.models.plugins import Plugins
    from vd.predict.predictor import Predictor

_FLAT = (tyro.conf.OmitArgPrefixes,)
_OBJECTS_AT_START = 50_000  # imports make many, and no garbage
_FORMER_FLAGS = (
    "--seeds", "--learning-rates", "--focal-alphas", "--focal-gammas",
    "--label-smoothings", "--dropout-rates", "--grad-clip-norms",
)  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """Decode every file once, each under a deadline, and list what is lost."""

    data: DataConfig
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    report_dir: Path = Path("scan")
    """Folder for scan.csv (a row a file) and scan.json (counts, loss gap)."""

    def __call__(self) -> int:
        """Exit code 3 when one class lost far more files than the other."""
        from vd.data.catalog import identify
        from vd.data.ledger import check_loss_gap, report, scan
        from vd.data.manifest import check_classes, read_manifest
        from vd.files import write_csv, write_json

        manifest = read_manifest(self.data, self.decode, both_classes=False)
        self.report_dir.mkdir(parents=True, exist_ok=True)  # or fail before the work
        videos = identify(manifest.videos, self.data.cache_dir)
        ledger = scan(videos, self.data, self.decode)
        write_csv(self.report_dir / "scan.csv", ledger.rows())
        write_json(self.report_dir / "scan.json", ledger.summary(manifest.ignored))
        report(ledger, manifest.ignored, self.report_dir / "scan.csv")
        say(f"written: {self.report_dir / 'scan.csv'}, {self.report_dir / 'scan.json'}")
        check_classes(videos, f"--dataset-path {self.data.dataset_path}")
        check_loss_gap(ledger, self.data.max_loss_gap)
        return 0


@dataclass(frozen=True)
class Audit:
    """Find copies, leakage between splits, and shortcuts of a data set; trains nothing."""

    data: DataConfig
    splits: SplitConfig = field(default_factory=SplitConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    report_dir: Path = Path("audit")
    """Folder for audit.json and audit.html."""

    def __call__(self) -> int:
        """Print the findings, the worst first."""
        from vd.audit.audit import audit

        config = Config(self.data, self.splits, self.decode, self.backbone)
        audit(config, self.report_dir)
        return 0


@dataclass(frozen=True)
class Split:
    """Assign splits, groups kept whole, and keep them in the splits file."""

    data: DataConfig
    splits: SplitConfig = field(default_factory=SplitConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    merge_duplicates: bool = False
    """Put clips of the same footage or scene into one group first (decodes every file)."""

    def __call__(self) -> int:
        """Write the splits file, which training then takes; print its counts."""
        from vd.data.splits import split

        find_duplicates = None
        if self.merge_duplicates:
            from vd.data.near_duplicates import duplicate_ids

            find_duplicates = partial(duplicate_ids, data=self.data, decode=self.decode)
        config = Config(self.data, self.splits, self.decode)
        split(config, find_duplicates)
        return 0


@dataclass(frozen=True)
class Extract:
    """Turn videos into features in the store; finished ones are skipped."""

    data: DataConfig
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)

    def __call__(self) -> int:
        """Exit code 3 when one class lost far more files than the other."""
        from vd.experiment import prepare

        config = Config(data=self.data, decode=self.decode, backbone=self.backbone)
        data = prepare(config, lambda videos, _: videos, self.executor)
        count = f"{len(data.ledger.usable())} of {len(data.videos)} videos"
        say(f"{count} have features in {data.store.directory}")
        return 0


@dataclass(frozen=True)
class _Training(Config):
    """A command that trains."""

    head: str | None = None
    """Your own head, package.module:Name; its settings become flags (docs/extending.md)."""

    def plugins(self, **parts: Any) -> "Plugins":
        """A script's own parts, and the head with the settings that flags give."""
        from vd.models.plugins import Plugins

        plugins = Plugins(**parts)
        return plugins._replace(head=getattr(self, "own_head", plugins.head))


@dataclass(frozen=True)
class Train(_Training):
    """Extract, train, calibrate, evaluate the restored best checkpoint, draw pictures."""

    def __call__(self, **parts: Any) -> int:
        """Run the experiment that the flags describe, with a script's own parts."""
        from vd.experiment import run

        run(self, *self.plugins(**parts))
        return 0


@dataclass(frozen=True)
class Adapt:
    """Fine-tune the backbone's upper blocks on the training clips, for one or more streams."""

    data: DataConfig
    splits: SplitConfig = field(default_factory=SplitConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    training: TrainingConfig = ADAPTATION
    run: RunConfig = field(default_factory=RunConfig)

    def __call__(self) -> int:
        """Write a run folder; its backbone.npz has the adapted networks."""
        from vd.adaptation import adapt

        adapt(self.config(), self.adapt)
        return 0

    def config(self) -> Config:
        """The settings of the run."""
        return Config(
            self.data, self.splits, self.decode, model=ADAPTED_MODEL,
            training=self.training, run=self.run,
        )  # fmt: skip


@dataclass(frozen=True)
class Sweep(_Training):
    """Train every combination of some settings' values; each is a run folder of its own."""

    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE,VALUE…: values of a setting of the model or of training; may be repeated."""
    folds: Annotated[int, Between(0, 1000)] = 0
    """Grouped, stratified folds over all clips, each the test part once (0: the splits)."""

    def __call__(self) -> int:
        """Train and evaluate every member; write sweep.csv."""
        from vd.sweep import parse_grid, sweep

        sweep(self, parse_grid(self.set), self.folds, self.plugins())
        return 0


@dataclass(frozen=True)
class Crossval(_Training):
    """Train and test every fold with every seed, and pool the predictions."""

    folds: Annotated[int, Between(2, 1000)] = 5
    """Grouped, stratified folds over all clips, each the test part once."""
    seeds: tuple[int, ...] = ()
    """Values of --seed; none: --seed alone."""
    cross_dataset: tuple[Path, ...] = ()
    """Other data sets: the same on each of them, and every one's members tested on all."""

    def __call__(self) -> int:
        """Write predictions.csv and crossval.json; print the latter."""
        from vd.sweep import crossval

        others, plugins = self.cross_dataset, self.plugins()
        result = crossval(self, self.folds, self.seeds, others, plugins)
        print(json.dumps(result, indent=2))
        return 0


@dataclass(frozen=True)
class AdaptedCrossval(Adapt):
    """Adapt the backbone once for every fold and seed, and pool the predictions."""

    folds: Annotated[int, Between(2, 1000)] = 5
    """Grouped, stratified folds over all clips, each the test part once."""
    seeds: tuple[int, ...] = ()
    """Values of --seed; none: --seed alone."""
    adapt_backbone: Annotated[bool, tyro.conf.arg(name="adapt")] = True
    """Adapt; without it a head is trained on the backbone's features."""

    def __call__(self) -> int:
        """Write predictions.csv and crossval.json; print the latter."""
        from vd.sweep import crossval_adapted

        result = crossval_adapted(self.config(), self.adapt, self.folds, self.seeds)
        print(json.dumps(result, indent=2))
        return 0


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


_COMMANDS: tuple[Any, ...] = (
    Scan, Audit, Split, Extract, Train, Adapt, Sweep, Crossval, Evaluate, Compare, Report, Predict,
    Export,
)  # fmt: skip


def main() -> None:
    """The console script `vd`."""
    if sys.argv[1:] == ["--version"]:
        print(f"vd {__version__}")
    else:
        run_command(_command)


def _command() -> int:
    """Call the command that the arguments name."""
    commands = {command.__name__.lower(): command for command in _COMMANDS}
    name, *flags = sys.argv[1:] or [""]
    if former := [flag for flag in _FORMER_FLAGS if name == "sweep" and flag in flags]:
        raise VdError(
            f"{former[0]} is replaced by --set NAME=VALUE,VALUE; give for example "
            "--set seed=0,1,2."
        )
    if name == "crossval" and "--adapt" in flags:
        commands[name] = AdaptedCrossval
    elif name in ("train", "sweep", "crossval"):
        commands[name] = _with_head_flags(commands[name])
    chosen = tyro.extras.subcommand_cli_from_dict(
        commands, prog="vd", description="Violence detection in video.", config=_FLAT
    )
    return int(chosen())


def _with_head_flags(command: Any, head: "type[Head] | None" = None) -> Any:
    """The command with the settings of the head that it trains among its flags."""
    from vd.models.plugins import import_head, with_head_settings

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--head", type=import_head, default=head)
    head = parser.parse_known_args()[0].head
    return with_head_settings(command, head) if head else command


def experiment(
    description: str | None,
    command: type[Train] = Train,
    head: "type[Head] | None" = None,
    loss: Callable[..., Any] | None = None,
    augmentation: Callable[..., Any] | None = None,
    **defaults: Any,
) -> None:
    """Run an experiment script: its settings are defaults, every one of them a flag."""
    if command is Train:
        defaults["data"] = DataConfig(dataset_path=tyro.MISSING)

    def run() -> int:
        with_head = _with_head_flags(command, head)
        chosen = tyro.cli(
            with_head,
            default=with_head(**defaults),
            description=description,
            config=_FLAT,
        )
        return chosen(head=head, loss=loss, augmentation=augmentation)

    run_command(run)


def run_command(command: Callable[[], int]) -> None:
    """Call a command and exit; our own errors and signals are one sentence each."""
    listen()
    atexit.register(
        gc.freeze
    )  # else Python looks for garbage among all that it imported
    code, message = 0, ""
    try:
        code = command()
    except VdError as error:
        code, message = error.exit_code, f"vd: {error}"
    except Interrupted as signal_came:
        code = signal_came.exit_code
        message = f"vd: interrupted; {signal_came.kept}."
    except BrokenPipeError:  # `vd predict … | head` has read enough
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as error:
        code, message = USAGE, f"vd: {error}; name another file or folder."
    except Exception:
        if processes().count == 1:
            raise
        traceback.print_exc()
        code, message = 1, f"vd: {LOST}"
    if message:
        say(message)
    end(code)


if __name__ == "__main__":
    main()
