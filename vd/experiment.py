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

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vd.config import AdaptConfig, BackboneConfig, Config, ExecutorConfig, ModelConfig
from vd.console import say, say_limits
from vd.data.catalog import identify
from vd.data.manifest import Video, check_classes, read_manifest
from vd.data.splits import keep_splits, with_splits
from vd.errors import VdError
from vd.features.seen import (
    Seen,
    check_apart,
    check_unseen,
    clip_rows,
    find_seen,
    seen_rows,
)
from vd.files import lock, read_json
from vd.metrics.binary import METRICS
from vd.models.plugins import BUILT_IN, Plugins
from vd.training import distributed, run_folder
from vd.training.run_folder import Data

if TYPE_CHECKING:
    import jax

    from vd.features.backbone import Backbone
    from vd.models.head import Head, Params
    from vd.training.adapt import Adapted
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
            return _finished(run_dir) if lead else {}
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
        for seen in _find_seen(backbone, readable, config):
            check(readable, seen)
    several = distributed.processes().count > 1
    store, ledger = extract(videos, config, backbone, executor, only_stored=several)
    if distributed.is_lead():
        report(ledger, manifest.ignored, config.data.cache_dir / "ledger.csv")
    check_loss_gap(ledger, config.data.max_loss_gap)
    return Data(list(given), list(videos), ledger, store, backbone, seen)


def _find_seen(
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
    adapted: bool = False,
) -> Opened | None:
    """Write a run folder, or continue the one there; None when that run is finished.

    Process 0 holds its lock. `fewest` is the number of clips of a sweep's smallest train
    part, whose batch all members use. `adapted`: as in `check_backbone`.
    """
    run_dir, clips = config.run.checkpoint_dir, data.parts()
    for split, videos in clips.items():
        check_classes(
            videos,
            f"the {split} split, without its quarantined files,",
            "repair or replace the files listed above, or add clips",
        )
    assert data.seen is not None  # `prepare` had no check
    check_backbone(config, data.ledger.usable(), data.seen, adapted)
    identity = {
        **run_folder.settings_identity(config),
        **plugins.identity(),
        "features": data.store.fingerprint,
        "dataset": run_folder.dataset_fingerprint(data.ledger.usable()),
    }
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
    judging = _judging(config, videos, adapted)
    check_unseen(str(config.backbone.backbone), seen, judging)


def _judging(
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


def _finished(run_dir: Path) -> dict[str, Any]:
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
    return _evaluate(config, plugins, sets, params, inner) if lead else {}


def adapt(config: Config, settings: AdaptConfig) -> dict[str, Any]:
    """Adapt the backbone, then evaluate the run whose head is its read-out.

    `config.training` is that of the adaptation. The folder `adaptation` of the run keeps
    its checkpoints. Returns the content of evaluation_test.json.
    """
    from vd.training.adapt import image_config

    images = image_config(config, settings)
    check_adaptation(images, settings)
    data = prepare(images, check=partial(check_backbone, images))
    with lock(config.run.checkpoint_dir / ".lock", "vd adapt"):
        if data.videos != data.given:
            keep_splits(data.videos, config)
        return adapt_prepared(images, settings, data)


def check_adaptation(images: Config, settings: AdaptConfig) -> None:
    """`check` of a run that adapts."""
    from vd.training.adapt import adapter_plugins

    if distributed.several(images.run):
        raise VdError(
            "vd adapt trains in one process; leave --coordinator-address, --num-processes "
            "and --process-id out."
        )
    run_folder.check_folder(images.run.checkpoint_dir.parent)
    check(images, adapter_plugins(settings))


def check_parts(images: Config, videos: Sequence[Video]) -> None:
    """Raise `VdError` when an adaptation would see what calibrates or tests its run.

    `videos` are the usable clips with their splits.
    """
    from vd.training.refit import parts_to_use

    clips = parts_to_use(images, run_folder.parts_of(videos))
    where = images.data, images.decode
    rows = seen_rows(clips["train"], (), clip_rows(videos, *where))
    for seen in find_seen(rows, videos, *where):
        check_apart(seen, _judging(images, videos, adapted=True))


def adapt_prepared(images: Config, settings: AdaptConfig, data: Data) -> dict[str, Any]:
    """`adapt` with images that are in the store; the caller holds the run's lock."""
    from vd.training.adapt import Adaptation, adapter_plugins
    from vd.training.feature_set import TRAINED_SHARE, FeatureSet
    from vd.training.refit import parts_to_use

    folder = images.run.checkpoint_dir
    run_dir = folder.parent
    plugins = adapter_plugins(settings)
    if images.run.fresh:
        run_folder.clear(run_dir)
    opened = open_run(images, plugins, data)
    assert opened is not None  # an adaptation is never finished by itself
    if run_folder.is_finished(run_dir):
        return _finished(run_dir)
    usable = data.ledger.usable()
    check_parts(images, usable)
    clips = parts_to_use(images, data.parts())
    train_set = FeatureSet(clips["train"], data.store, share=TRAINED_SHARE)
    rows = clip_rows(usable, images.data, images.decode)
    adaptation = Adaptation(
        images, settings, folder, opened.devices, opened.batch_size, rows
    )
    if "val" in clips:
        adapted, inner = adaptation.on_all(train_set), None
    else:
        adapted, inner = adaptation.with_inner_folds(train_set)
    return _evaluate_adapted(images, data, adapted, inner)


def _evaluate_adapted(
    images: Config, data: Data, adapted: "Adapted", inner: "InnerFolds | None"
) -> dict[str, Any]:
    """Write the run of an adapted network and its read-out; evaluate and report it."""
    from vd.training.adapt import write_read_out
    from vd.training.feature_set import FeatureSet
    from vd.training.refit import parts_to_use

    folder = images.run.checkpoint_dir
    config, data = adapted_features(images, data, adapted)
    opened = open_run(config, BUILT_IN, data, adapted=True)
    assert opened is not None
    shutil.copyfile(folder / "metrics.jsonl", folder.parent / "metrics.jsonl")
    params = write_read_out(folder.parent, adapted, config.training.epochs)
    parts = parts_to_use(config, data.parts()).items()
    sets = {split: FeatureSet(clips, data.store) for split, clips in parts}
    result = _evaluate(config, BUILT_IN, sets, params, inner, adapted=True)
    shutil.rmtree(folder / "checkpoints")  # only a run that is not finished needs them
    return result


def adapted_features(
    images: Config, data: Data, adapted: "Adapted"
) -> tuple[Config, Data]:
    """The run that reads an adapted network out, and its features; writes backbone.npz."""
    from vd.features.backbone import find_backbone
    from vd.features.extract import extract
    from vd.features.network import write_network
    from vd.training.adapt import READ_OUT

    run_dir = images.run.checkpoint_dir.parent
    write_network(run_dir / "backbone.npz", adapted.network, half=True)
    config = replace(
        images,
        backbone=BackboneConfig(backbone=str(run_dir / "backbone.npz")),
        model=READ_OUT,
        run=replace(images.run, checkpoint_dir=run_dir, fresh=False),
    )
    backbone = find_backbone(config.backbone)
    usable = data.ledger.usable()
    *_, seen = _find_seen(backbone, usable, config)
    store, _ = extract(usable, config, backbone)
    return config, data._replace(store=store, backbone=backbone, seen=seen)


def _evaluate(
    config: Config,
    plugins: Plugins,
    sets: Mapping[str, "FeatureSet"],
    params: "Params",
    inner: "InnerFolds | None",
    adapted: bool = False,
) -> dict[str, Any]:
    """Calibrate and evaluate the best parameters; write pictures and the report.

    `adapted`: the backbone has seen the training clips.
    """
    from vd import plots
    from vd.evaluation import probe
    from vd.evaluation.evaluate import evaluate_trained, summary
    from vd.models.losses import even_logit
    from vd.report.report import RunFacts, report, run_limits
    from vd.training.log import read_metrics

    run_dir = config.run.checkpoint_dir
    curves = plots.learning_curves({"": read_metrics(run_dir)})
    plots.save(curves, run_dir / "curves.png")
    head = plugins.make_head(config.model)
    share = float(sets["train"].labels_N.mean())
    even = even_logit(plugins.loss, config.training, share)
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
