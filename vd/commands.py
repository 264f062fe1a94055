"""The commands on data sets and those that train: flags, a call, what is printed.

Heavy modules are imported by the command that needs them, so that help and errors are
quick.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vd.config import (
    ADAPTED_MODEL,
    AdaptConfig,
    AdaptTrainingConfig,
    BackboneConfig,
    Between,
    Config,
    DataConfig,
    DecodeConfig,
    ExecutorConfig,
    OneProcessConfig,
    SplitConfig,
)
from vd.console import say, say_limits

if TYPE_CHECKING:
    from vd.models.plugins import Plugins


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
    adaptation: AdaptConfig = field(default_factory=AdaptConfig)
    training: AdaptTrainingConfig = field(default_factory=AdaptTrainingConfig)
    run: OneProcessConfig = field(default_factory=OneProcessConfig)

    def __call__(self) -> int:
        """Write a run folder; its backbone.npz has the adapted networks."""
        from vd.adaptation import adapt

        adapt(self.config(), self.adaptation)
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

    run: OneProcessConfig = field(default_factory=OneProcessConfig)
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
class _Folds:
    """What a cross-validation is made of."""

    folds: Annotated[int, Between(2, 1000)] = 5
    """Grouped, stratified folds over all clips, each the test part once."""
    seeds: tuple[int, ...] = ()
    """Values of --seed; none: --seed alone."""
    adapt: tyro.conf.FlagCreatePairsOff[bool] = False
    """Adapt the backbone once for every fold and seed, as vd adapt does; the other flags are
    then those of vd adapt (vd crossval --adapt --help)."""


@dataclass(frozen=True)
class Crossval(_Folds, _Training):
    """Train and test every fold with every seed, and pool the predictions."""

    run: OneProcessConfig = field(default_factory=OneProcessConfig)
    cross_dataset: tuple[Path, ...] = ()
    """Other data sets: the same on each of them, and every one's members tested on all."""

    def __call__(self) -> int:
        """Write predictions.csv and crossval.json; print the main figures."""
        from vd.sweep import crossval

        others, plugins = self.cross_dataset, self.plugins()
        _print_crossval(crossval(self, self.folds, self.seeds, others, plugins))
        return 0


@dataclass(frozen=True)
class AdaptedCrossval(_Folds, Adapt):
    """Adapt the backbone once for every fold and seed, and pool the predictions."""

    def __call__(self) -> int:
        """Write predictions.csv and crossval.json; print the main figures."""
        from vd.sweep import crossval_adapted

        settings = self.config(), self.adaptation
        _print_crossval(crossval_adapted(*settings, self.folds, self.seeds))
        return 0


def _print_crossval(result: dict[str, Any]) -> None:
    """Print the main figures of a cross-validation, and what limits them."""
    from vd.evaluation.crossval import summary

    print(summary(result))
    say_limits(result["warnings"])
