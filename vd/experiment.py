"""One experiment, from videos to pictures: `vd train` and every script call `run`.

1. Check settings, then the manifest, before anything slow.
2. Extract missing features; print the ledger; refuse a gap between the classes' losses.
3. Open the run folder: another identity is an error, a finished run is left as it is.
4. Train, or continue; restore the best; fit temperature and threshold on validation, or
   with --refit on inner folds.
5. Evaluate the restored best on validation and test, and a linear probe beside it; write
   pictures and the report.

Heavy modules are imported in the functions that need them, so that errors are quick.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vd.config import AdaptConfig, Config, ExecutorConfig, ModelConfig
from vd.console import say, say_limits
from vd.data.catalog import identify
from vd.data.manifest import Video, check_classes, read_manifest
from vd.data.splits import keep_splits, with_splits
from vd.errors import VdError
from vd.features.seen import Seen, check_unseen, find_seen
from vd.files import lock, read_json
from vd.metrics.binary import METRICS
from vd.models.plugins import Plugins
from vd.training import distributed, run_folder
from vd.training.run_folder import Data

if TYPE_CHECKING:
    import jax

    from vd.features.backbone import Backbone
    from vd.models.head import Head, Params
    from vd.training.feature_set import FeatureSet
    from vd.training.refit import InnerFolds


class Opened(NamedTuple):
    """What the open run trains with."""

    batch_size: int
    devices: "Sequence[jax.Device]"


def run(
    config: Config,
    head: "Callable[[ModelConfig], Head] | None" = None,
    loss: Callable[..., Any] | None = None,
    augmentation: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Run, or continue, one experiment; returns the content of evaluation_test.json.

    `head`, `loss` and `augmentation` are a user's own (`vd.models.plugins.Plugins`,
    docs/extending.md); their import paths are part of the run's identity.
    Of several processes (docs/hosts.md) the first alone evaluates; the others return {}.
    """
    distributed.join(config.run)
    plugins, lead = Plugins(head, loss, augmentation), distributed.is_lead()
    processes, run_dir = distributed.processes().count, config.run.checkpoint_dir
    check(config, plugins)
    data = prepare(config, check=partial(check_backbone, config))
    with lock(run_dir / ".lock", "vd train") if lead else nullcontext():
        opened = open_run(config, plugins, data)
        if opened is None:
            distributed.part()
            return finished_result(run_dir) if lead else {}
        if data.videos != data.given and lead:
            keep_splits(data.videos, config)
        from vd.training.feature_set import TRAINED_SHARE, FeatureSet

        holders = opened.devices if processes == 1 else ()
        from vd.training.refit import parts_to_use

        clips, share = parts_to_use(config, data.parts()), TRAINED_SHARE / processes
        sets = {"train": FeatureSet(clips.pop("train"), data.store, holders, share)}
        if lead:
            for split, videos in clips.items():
                sets[split] = FeatureSet(videos, data.store)
        return train_and_evaluate(config, plugins, sets, opened)


def check(config: Config, plugins: Plugins) -> None:
    """Raise `VdError`, before anything slow, for wrong settings or another run's folder."""
    known = ["val_loss", *(f"val_{name}" for name in METRICS)]
    if (metric := config.training.early_stopping_metric) not in known:
        raise VdError(
            f"--early-stopping-metric {metric} is unknown; give one of {', '.join(known)}."
        )
    if config.training.refit and distributed.several(config.run):
        raise VdError(
            "--refit trains in one process; leave it out, or leave --coordinator-address, "
            "--num-processes and --process-id out."
        )
    identity = run_folder.settings_identity(config) | plugins.identity()
    if distributed.is_lead():
        run_folder.check_folder(config.run.checkpoint_dir)
        if not config.run.fresh:
            run_folder.check_identity(config.run.checkpoint_dir, identity)


def prepare(
    config: Config,
    assign: Callable[[Sequence[Video], Config], Sequence[Video]] = with_splits,
    executor: ExecutorConfig = ExecutorConfig(),  # noqa: B008  # immutable
    check: Callable[[Sequence[Video], Seen], None] | None = None,
) -> Data:
    """Read and extract a data set; print its ledger, refuse one with a loss gap.

    `assign` gives its videos their splits. `check` is called before the backbone runs, with
    the readable videos and what the backbone has seen of them; a run whose clips calibrate
    or test must have one. Several processes extract nothing: a missing feature is an error.
    """
    from vd.data.ledger import check_loss_gap, report
    from vd.features.backbone import find_backbone
    from vd.features.extract import extract

    manifest = read_manifest(config.data, config.decode)
    given = identify(manifest.videos, config.data.cache_dir)
    videos = assign(given, config)
    backbone = find_backbone(config.backbone)
    seen = None
    if check is not None:
        readable = [video for video in videos if video.id]
        for seen in seen_by(backbone, readable, config):
            check(readable, seen)
    several = distributed.processes().count > 1
    store, ledger = extract(videos, config, backbone, executor, only_stored=several)
    if distributed.is_lead():
        report(ledger, manifest.ignored, config.data.cache_dir / "ledger.csv")
    check_loss_gap(ledger, config.data.max_loss_gap)
    return Data(list(given), list(videos), ledger, store, backbone, seen)


def seen_by(
    backbone: "Backbone", videos: Sequence[Video], config: Config
) -> Iterator[Seen]:
    """`find_seen`; of several processes the first alone looks for copies."""
    steps = find_seen(backbone.seen, videos, config.data, config.decode)
    return steps if distributed.is_lead() else islice(steps, 1)


def open_run(
    config: Config,
    plugins: Plugins,
    data: Data,
    fewest: int | None = None,
    adapted: AdaptConfig | None = None,
) -> Opened | None:
    """Write a run folder, or continue the one there; None when that run is finished.

    Process 0 holds its lock. `fewest` is the number of clips of a sweep's smallest train
    part, whose batch all members use. `adapted`: how the run's own backbone was adapted on
    its training clips.
    """
    run_dir, clips = config.run.checkpoint_dir, data.parts()
    for split, videos in clips.items():
        check_classes(
            videos,
            f"the {split} split, without its quarantined files,",
            "repair or replace the files listed above, or add clips",
        )
    assert data.seen is not None  # `prepare` had no check
    usable = data.ledger.usable()
    check_backbone(config, usable, data.seen, adapted is not None)
    identity = {
        **run_folder.settings_identity(config),
        **plugins.identity(),
        "features": data.store.fingerprint,
        "dataset": run_folder.dataset_fingerprint(data.ledger.usable()),
    }
    if adapted is not None:
        identity |= run_folder.adaptation_identity(adapted)
    lead, finished, before = distributed.is_lead(), False, None
    if lead and not config.run.fresh and (run_dir / "config.json").exists():
        run_folder.check_identity(run_dir, identity, data.ledger.usable())
        finished = run_folder.is_finished(run_dir)
        before = run_folder.read_config(run_dir)["devices"]["count"]
    theirs, finished, before = distributed.broadcast((identity, finished, before))
    run_folder.check_same_run(theirs, identity)
    if finished:
        return None
    if fewest is None:
        from vd.training.refit import fewest_to_train

        fewest = fewest_to_train(config, clips)
    opened = _batch_and_devices(config, fewest, before)
    if lead:
        if config.run.fresh:  # nothing is deleted before all checks are done
            run_folder.clear(run_dir)
        run_folder.write_inputs(config, plugins, data, identity, *opened)
    return opened


def check_backbone(
    config: Config, videos: Sequence[Video], seen: Seen, adapted: bool = False
) -> None:
    """Raise `VdError` when the backbone has seen clips that calibrate or test the run.

    `videos` have splits. Inner folds calibrate on the training clips. `adapted`: it was
    adapted on just these, and their logits are of other networks, which have not seen them.
    """
    judging = judging_clips(config, videos, adapted)
    check_unseen(str(config.backbone.backbone), seen, judging)


def judging_clips(
    config: Config, videos: Sequence[Video], adapted: bool
) -> dict[str, list[Video]]:
    """The clips that calibrate or test a run, by split; `adapted`: as in `check_backbone`."""
    from vd.training.refit import parts_to_use

    judging = parts_to_use(config, run_folder.parts_of(videos))
    if "val" in judging or adapted:
        del judging["train"]
    return judging


def _batch_and_devices(config: Config, train_clips: int, before: int | None) -> Opened:
    """The batch size, cut to what a small train split can fill, and the devices.

    `before` is the number of devices on which an unfinished run began.
    """
    from vd.devices import training_devices

    processes, requested = distributed.processes().count, config.run.devices
    size = config.training.batch_size
    batch_size = min(size, train_clips)
    batch_size -= batch_size % ((requested or 1) * processes)
    devices = training_devices(requested, batch_size, processes, before)
    if distributed.is_lead():
        if batch_size < size:
            say(
                f"the train split has {train_clips} clips: --batch-size is cut to {batch_size}"
            )
        if before not in (None, len(devices)):
            say(
                f"warning: the run began on {before} devices and goes on with "
                f"{len(devices)}: the last bits of its numbers will differ"
            )
    return Opened(batch_size, devices)


def finished_result(run_dir: Path) -> dict[str, Any]:
    """The test evaluation of a finished run."""
    from vd.evaluation.evaluate import summary

    say(f"{run_dir} is finished; nothing to do (--fresh would start over)")
    remedy = "delete it, and the same command evaluates again"
    result = read_json(run_dir / "evaluation_test.json", remedy)
    say(summary(result))
    return result


def train_and_evaluate(
    config: Config, plugins: Plugins, sets: Mapping[str, "FeatureSet"], opened: Opened
) -> dict[str, Any]:
    """Train, or continue, the open run; evaluate its restored best, write the report.

    Temperature and threshold are fitted on validation. Returns the test evaluation; of
    several processes the first alone evaluates.
    """
    from vd.training.loop import train
    from vd.training.refit import train_with_inner_folds

    (batch_size, devices), run_dir = opened, config.run.checkpoint_dir
    lead = distributed.is_lead()
    if lead:
        kind = devices[0].device_kind
        say(f"training on {len(sets['train'])} clips, {len(devices)} × {kind}")
        if config.model.mixed_precision and devices[0].platform == "cpu":
            say("note: on most CPUs --no-mixed-precision is faster")
    clips, inner = sets["train"], None
    how = run_dir, devices, batch_size, plugins
    if lead and "val" not in sets:
        params, inner = train_with_inner_folds(config, clips, *how)
    else:
        params = train(config, clips, sets.get("val"), *how)
    distributed.part()
    return evaluate_and_report(config, plugins, sets, params, inner) if lead else {}


def evaluate_and_report(
    config: Config,
    plugins: Plugins,
    sets: Mapping[str, "FeatureSet"],
    params: "Params",
    inner: "InnerFolds | None",
    even_scale: float = 1.0,
    adapted: bool = False,
) -> dict[str, Any]:
    """Calibrate and evaluate the best parameters; write pictures and the report.

    The logit of a clip without information is `even_scale` times the loss's own. `adapted`:
    the backbone has seen the training clips.
    """
    from vd import plots
    from vd.evaluation import probe
    from vd.evaluation.evaluate import evaluate_trained, summary
    from vd.models.losses import even_logit
    from vd.report.report import RunFacts, report, run_limits
    from vd.training.log import read_metrics

    run_dir = config.run.checkpoint_dir
    rows: dict[str, list[Any]] = {}
    for row in read_metrics(run_dir):  # of each stream, where several were adapted to
        rows.setdefault(row.get("stream", ""), []).append(row)
    plots.save(plots.learning_curves(rows), run_dir / "curves.png")
    head = plugins.make_head(config.model)
    share = float(sets["train"].labels_N.mean())
    even = even_scale * even_logit(plugins.loss, config.training, share)
    results = evaluate_trained(config, head, params, sets, even, inner)
    of_probe = probe.evaluate_probe(config, sets, adapted)
    for result in results.values():
        say(summary(result))
    if of_probe is not None:
        say(probe.summary(of_probe))
    report(run_dir, mistakes=0)
    say_limits(run_limits(RunFacts(run_dir)))
    say(f"metrics, predictions, pictures and report.html are in {run_dir}")
    return results["test"]
