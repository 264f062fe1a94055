"""The command line: one subcommand for each task; parses, calls, prints; nothing else.

Heavy modules are imported by the command that needs them, so that help and errors are
quick and a decoding worker, which imports the main script again, stays light.
"""

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import (
    MISSING,
    dataclass,
    field,
    fields,
    is_dataclass,
    make_dataclass,
)
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import tyro

from vd import __version__
from vd.config import (
    BackboneConfig,
    Between,
    Config,
    DataConfig,
    DecodeConfig,
    EngineName,
    ExecutorConfig,
    Settings,
    SplitConfig,
)
from vd.console import Interrupted, listen, say, say_limits
from vd.errors import SOME_FAILED, USAGE, VdError
from vd.training.distributed import LOST, end, join, processes

if TYPE_CHECKING:
    from vd.models.head import Head

_FLAT = (tyro.conf.OmitArgPrefixes,)
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
        from vd.files import make_folder, write_csv, write_json

        manifest = read_manifest(self.data, both_classes=False)
        make_folder(self.report_dir, "--report-dir")
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
    checkpoint_dir: Path | None = None
    """A run whose test accuracy is counted again without leaked clips."""

    def __call__(self) -> int:
        """Print the findings, the worst first."""
        from vd.audit.audit import audit

        config = Config(self.data, self.splits, self.decode, self.backbone)
        audit(config, self.report_dir, self.checkpoint_dir)
        return 0


@dataclass(frozen=True)
class Split:
    """Assign splits, groups kept whole, and keep them in the splits file."""

    data: DataConfig
    splits: SplitConfig = field(default_factory=SplitConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    merge_duplicates: bool = False
    """Put clips of the same footage or scene into one group first (decodes every file)."""
    manifest: Path | None = None
    """Write a CSV as well, which --dataset-path takes: path,label,split,group."""

    def __call__(self) -> int:
        """Write the splits file, which training then takes; print its counts."""
        from vd.data.splits import split

        find_duplicates = None
        if self.merge_duplicates:
            from vd.audit.near_duplicates import duplicate_ids

            find_duplicates = partial(duplicate_ids, data=self.data, decode=self.decode)
        config = Config(self.data, self.splits, self.decode)
        split(config, find_duplicates, self.manifest)
        return 0


@dataclass(frozen=True)
class Extract:
    """Turn videos into features in the store; finished ones are skipped."""

    data: DataConfig
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    verify: bool = False
    """Read every stored record against its checksum first; videos of damaged shards are
    extracted again."""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)

    def __call__(self) -> int:
        """Exit code 3 when one class lost far more files than the other."""
        from vd.data.catalog import identify
        from vd.data.ledger import check_loss_gap, report
        from vd.data.manifest import read_manifest
        from vd.features.backbone import find_backbone
        from vd.features.extract import extract

        manifest = read_manifest(self.data)
        videos = identify(manifest.videos, self.data.cache_dir)
        config = Config(data=self.data, decode=self.decode, backbone=self.backbone)
        backbone = find_backbone(self.backbone)
        store, ledger = extract(videos, config, backbone, self.verify, self.executor)
        report(ledger, manifest.ignored, self.data.cache_dir / "ledger.csv")
        say(
            f"{len(ledger.usable())} of {len(videos)} videos have features in {store.directory}"
        )
        check_loss_gap(ledger, self.data.max_loss_gap)
        return 0


@dataclass(frozen=True)
class _Training(Config):
    """A command that trains."""

    head: str | None = None
    """Your own head, package.module:Name; its settings become flags (docs/extending.md)."""

    def chosen_head(self, head: "type[Head] | None" = None) -> Any:
        """The head that --head names, else a script's, with its settings."""
        head = _import_head(self.head) if self.head else head
        settings = getattr(self, "head_settings", None)
        return partial(head, **vars(settings)) if head and settings else head


@dataclass(frozen=True)
class Train(_Training):
    """Extract, train, calibrate, evaluate the restored best checkpoint, draw pictures."""

    def __call__(
        self, head: "type[Head] | None" = None, **plugins: Callable[..., Any] | None
    ) -> int:
        """Run the experiment that the flags describe, with a script's own plug-ins."""
        from vd.experiment import run
        from vd.training.opening import check_devices

        check_devices(self, self.run.num_processes or 1)
        join(self.run)
        run(self, self.chosen_head(head), **plugins)
        return 0


@dataclass(frozen=True)
class Sweep(_Training):
    """Train every combination of some settings' values; each is a run folder of its own."""

    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE,VALUE…: values of a setting of the model or of training; may be repeated."""
    folds: Annotated[int, Between(0, 1000)] = 0
    """Grouped, stratified folds over all clips, each the test part once (0: the splits)."""

    def __call__(self) -> int:
        """Train and evaluate every member; write sweep.csv."""
        from vd.models.plugins import Plugins
        from vd.sweep import parse_grid, sweep

        plugins = Plugins(head=self.chosen_head())
        sweep(self, parse_grid(self.set), self.folds, plugins)
        return 0


@dataclass(frozen=True)
class Crossval(_Training):
    """Train and test every fold with every seed, and pool the predictions."""

    folds: Annotated[int, Between(2, 1000)] = 5
    """Grouped, stratified folds over all clips, each the test part once."""
    seeds: tuple[int, ...] = ()
    """Values of --seed (default: --seed alone)."""
    cross_dataset: tuple[Path, ...] = ()
    """Other data sets: the same on each of them, and every one's members tested on all."""

    def __call__(self) -> int:
        """Write predictions.csv and crossval.json; print the latter."""
        from vd.models.plugins import Plugins
        from vd.sweep import crossval

        plugins = Plugins(head=self.chosen_head())
        result = crossval(self, self.folds, self.seeds, self.cross_dataset, plugins)
        print(json.dumps(result, indent=2))
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the best checkpoint of a run on one of its splits, or on another data set."""

    checkpoint_dir: Path
    """The run folder."""
    split: Literal["train", "val", "test", "all"] = "test"
    """The part to evaluate."""
    tta: bool = False
    """Average over the stored views (plain, mirrored) of each clip."""
    dataset_path: Path | None = None
    """Where the data set has moved, if it has."""
    cache_dir: Path | None = None
    """Where the features have moved, if they have."""
    on: Path | None = None
    """Another data set, all of it, with the run's threshold; clips that the run was trained
    or validated on, by content or group, are left out."""
    name: str | None = None
    """Name of the files of --on (default: that of the data set)."""
    positive_class: str | None = None
    """With --on: its violent class, when its names are not the usual ones."""
    group_from: str | None = None
    """With --on: regular expression that finds a clip's group in its path."""

    def __call__(self) -> int:
        """Write evaluation, predictions and pictures into the run folder; print the metrics."""
        if self.on is not None and (self.dataset_path or self.split != "test"):
            raise VdError(
                "--dataset-path and --split are of the run's own data set; leave them out "
                "with --on, which evaluates all of the other."
            )
        if self.on is None and (self.name or self.positive_class or self.group_from):
            raise VdError(
                "--name, --positive-class and --group-from are for another data set; name "
                "it with --on, or leave them out."
            )
        from vd.devices import prepare_jax
        from vd.evaluation.cross_dataset import evaluate_on
        from vd.evaluation.evaluate import evaluate, summary

        prepare_jax()
        if self.on is None:
            where = self.dataset_path, self.cache_dir
            result = evaluate(self.checkpoint_dir, self.split, self.tta, *where)
        else:
            result = evaluate_on(
                self.checkpoint_dir, self.on, self.name, self.tta, self.cache_dir,
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
    """Run folders, or folders of vd crossval; the first is the baseline."""
    out: Path | None = None
    """Folder for compare.json, compare.csv, roc.png, and curves over seeds as curves.csv and
    curves.png."""

    def __call__(self) -> int:
        """Print the verdicts on standard output, and what limits them."""
        from vd.evaluation.compare import compare, text

        result = compare(self.folders, self.out)
        print(text(result))
        for warning in result["warnings"]:
            say(f"warning: {warning}")
        return 0


@dataclass(frozen=True)
class Report(Settings):
    """Write a run or a cross-validation as one self-contained page."""

    folder: tyro.conf.Positional[Path]
    """A run folder, or one of vd crossval (vd compare takes several)."""
    out: Path | None = None
    """The page (default: report.html in the folder)."""
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
    """Probability of violence of video files: a JSON line each on standard output."""

    files: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH ...")]
    ]
    """Video files."""
    checkpoint_dir: Path
    """The run folder."""
    engine: EngineName = "auto"
    """What runs the backbone."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    def __call__(self) -> int:
        """Exit code 1 when some file could not be done."""
        from vd.devices import prepare_jax
        from vd.predict.predictor import Predictor

        if not self.files:
            raise VdError("vd predict was given no file; name one or more video files.")
        prepare_jax()
        failed = 0
        predictor = Predictor(self.checkpoint_dir, self.engine, self.decode)
        predictions = predictor.predict([Path(name) for name in self.files])
        for name, prediction in zip(self.files, predictions, strict=True):
            outcome = prediction.outcome
            if prediction.probability is None:
                failed += 1
                say(f"{name} could not be predicted: {outcome.reason}")
            elif outcome.outcome == "partial":
                say(
                    f"{name} is partial ({outcome.reason}): predicted from the "
                    f"{outcome.frames} frames that could be decoded"
                )
            row = {
                "path": name,  # as it was given
                "probability": prediction.probability,
                "label": prediction.label,
                "outcome": outcome.outcome,
                "reason": outcome.reason,
                "frames": outcome.frames,
                "duration": outcome.duration,
                "gaps": outcome.gaps,
            }
            print(json.dumps(row), flush=True)
        return SOME_FAILED if failed else 0


def main() -> None:
    """The console script `vd`."""
    if sys.argv[1:] == ["--version"]:
        print(f"vd {__version__}")
        return
    commands: dict[str, Callable[..., Any]] = {
        "scan": Scan,
        "audit": Audit,
        "split": Split,
        "extract": Extract,
        "train": Train,
        "sweep": Sweep,
        "crossval": Crossval,
        "evaluate": Evaluate,
        "compare": Compare,
        "report": Report,
        "predict": Predict,
    }

    def command() -> int:
        arguments = sys.argv[1:]
        _refuse_former_flags(arguments)
        for name in ("train", "sweep", "crossval"):
            if arguments[:1] == [name]:
                commands[name] = _with_head_flags(commands[name], arguments)
        chosen = tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="vd",
            description="Violence detection in video.",
            config=_FLAT,
        )
        return int(chosen())

    run_command(command)


def _with_head_flags(
    command: Any, arguments: Sequence[str], head: "type[Head] | None" = None
) -> Any:
    """The command with the settings of the head that it trains among its flags."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--head", type=_import_head, default=head)
    head = parser.parse_known_args(arguments)[0].head
    if head is None:
        return command
    from vd.models.plugins import own_fields

    own, hints = own_fields(head), get_type_hints(head)
    groups = filter(is_dataclass, get_type_hints(command).values())
    taken = {setting.name for group in (command, *groups) for setting in fields(group)}
    if clash := sorted(taken & own.keys()):
        raise VdError(
            f"the head {head.__name__} has a field {clash[0]}, which is the name of a "
            "setting of vd; rename it, or use self.config."
        )
    settings = make_dataclass(
        f"{head.__name__}Settings",
        [
            (name, hints[name], tyro.MISSING if default is MISSING else default)
            for name, default in own.items()
        ],
        frozen=True,
    )
    return make_dataclass(
        command.__name__,
        [("head_settings", settings, field(default_factory=settings))],
        bases=(command,),
        namespace={"__doc__": command.__doc__},
        frozen=True,
    )


def _import_head(path: str) -> Any:
    from vd.models.head import Head
    from vd.models.plugins import import_plugin

    head = import_plugin(path, f"--head {path}", Path.cwd())
    if not (isinstance(head, type) and issubclass(head, Head)):
        raise VdError(
            f"--head {path} is not a subclass of vd.models.head.Head; name such a class "
            "(docs/extending.md)."
        )
    return head


def _refuse_former_flags(arguments: Sequence[str]) -> None:
    """Raise `VdError` for a flag of `vd sweep` that `--set` has replaced."""
    for flag in _FORMER_FLAGS:
        if arguments[:1] == ["sweep"] and flag in arguments:
            raise VdError(
                f"{flag} is replaced by --set NAME=VALUE,VALUE; give for example "
                "--set seed=0,1,2."
            )


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
        with_head = _with_head_flags(command, sys.argv[1:], head)
        chosen = tyro.cli(
            with_head,
            default=with_head(**defaults),
            description=description,
            config=_FLAT,
        )
        return chosen(head, loss=loss, augmentation=augmentation)

    run_command(run)


def run_command(command: Callable[[], int]) -> None:
    """Call a command and exit; our own errors and signals are one sentence each."""
    listen()
    code, message = 0, ""
    try:
        code = command()
    except VdError as error:
        code, message = error.exit_code, f"vd: {error}"
    except Interrupted as signal_came:
        code = signal_came.exit_code
        message = "vd: interrupted; finished work is kept. Run the same command again to go on."
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
