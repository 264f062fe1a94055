"""Adaptation, from videos to a run: `vd adapt`, and each fold of `vd crossval --adapt`.

1. Check settings, then the manifest; keep the images of a stream in a store, like features.
2. Adapt a network to each stream, one after another: without each inner fold, then on all
   training clips (`vd.training.adapt`).
3. Write these networks, the pretrained one for --frozen-streams, as the run's backbone.npz, and
   extract their features.
4. Read them out together (`vd.training.readout`); evaluate and report as any run.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vd.config import AdaptConfig, BackboneConfig, Config, StreamName
from vd.console import say
from vd.data.manifest import Video
from vd.data.splits import keep_splits
from vd.experiment import (
    Opened,
    check,
    evaluate_and_report,
    finished_result,
    judging_clips,
    open_run,
    prepare,
    seen_by,
)
from vd.features.seen import Row, check_apart, clip_rows, find_seen, seen_rows
from vd.files import lock, write_text
from vd.models.plugins import BUILT_IN
from vd.training import run_folder
from vd.training.run_folder import Data

if TYPE_CHECKING:
    from vd.training.adapt import Adapted
    from vd.training.feature_set import FeatureSet
    from vd.training.readout import ReadOut
    from vd.training.refit import InnerFolds


class StreamResult(NamedTuple):
    """A network that was adapted to a stream, and its inner logits; None: val validates."""

    adapted: "Adapted"
    inner: "InnerFolds | None"


class Clips(NamedTuple):
    """What the adaptations to all streams share of a data set."""

    parts: dict[str, list[Video]]  # by split; without "val", inner folds calibrate
    rows: Mapping[str, Row]  # what a network's file says of each clip
    inner: list[list[Video]]  # inner folds of the training part


def adapt(config: Config, settings: AdaptConfig) -> dict[str, Any]:
    """Adapt networks, then evaluate the run whose head reads them out.

    `config.training` is that of the adaptation. The folder `adaptation` of the run keeps
    its checkpoints. Returns the content of evaluation_test.json.
    """
    from vd.training.adapt import image_config

    check_adaptation(config, settings)
    images = image_config(config, settings, settings.streams[0])
    # before the images are extracted; these have seen nothing
    data = prepare(images, check=lambda videos, _: check_parts(config, videos))
    with lock(config.run.checkpoint_dir / ".lock", "vd adapt"):
        if data.videos != data.given:
            keep_splits(data.videos, config)
        return adapt_prepared(config, settings, data)


def check_adaptation(config: Config, settings: AdaptConfig) -> None:
    """`vd.experiment.check` of a run that adapts."""
    from vd.training.adapt import adapter_plugins, image_config

    run_dir = config.run.checkpoint_dir
    run_folder.check_folder(run_dir)
    if not config.run.fresh:
        run_folder.check_identity(run_dir, run_folder.adaptation_identity(settings))
    for stream in settings.streams:
        images = image_config(config, settings, stream)
        check(images, adapter_plugins(settings, stream))


def check_parts(config: Config, videos: Sequence[Video]) -> None:
    """Raise `VdError` when an adaptation would see what calibrates or tests its run.

    `videos` are the readable ones with their splits; one that cannot be decoded trains
    nothing.
    """
    from vd.training.refit import parts_to_use

    clips = parts_to_use(config, run_folder.parts_of(videos))
    where = config.data, config.decode
    rows = clip_rows(videos, *where)
    trained = [video for video in clips["train"] if video.id in rows]
    for seen in find_seen(seen_rows(trained, (), rows), videos, *where):
        check_apart(seen, judging_clips(config, videos, adapted=True))


def clips_of(config: Config, data: Data) -> Clips:
    """The clips that a run adapts on; their near duplicates are looked for once."""
    from vd.training.adapt import inner_parts
    from vd.training.refit import parts_to_use

    parts = parts_to_use(config, data.parts())
    rows = clip_rows(data.ledger.usable(), config.data, config.decode)
    return Clips(
        parts, rows, [] if "val" in parts else inner_parts(parts["train"], config)
    )


def adapt_prepared(config: Config, settings: AdaptConfig, data: Data) -> dict[str, Any]:
    """`adapt` of a data set that `check_parts` accepts; the caller holds the run's lock."""
    from vd.training.adapt import adapter_plugins, image_config
    from vd.training.feature_set import FeatureSet
    from vd.training.readout import write_read_out

    run_dir = config.run.checkpoint_dir
    if config.run.fresh:
        run_folder.clear(run_dir)
    clips, results = clips_of(config, data), []
    for stream in settings.streams:
        images = image_config(config, settings, stream)
        of_stream = with_features(images, data)
        plugins = adapter_plugins(settings, stream)
        opened = open_run(images, plugins, of_stream, adapted=settings)
        assert opened is not None  # an adaptation is never finished by itself
        if run_folder.is_finished(run_dir):
            drop_checkpoints(config)
            return finished_result(run_dir)
        results.append(adapt_stream(images, settings, stream, of_stream, opened, clips))
    config, data = adapted_features(config, settings, data, results)
    opened = open_run(config, BUILT_IN, data, adapted=settings)
    assert opened is not None
    write_metrics(config, settings)
    sets = {
        split: FeatureSet(videos, data.store) for split, videos in clips.parts.items()
    }
    read_out = read_results(results, sets, clips.inner)
    params = write_read_out(run_dir, read_out.linear, config.training.epochs)
    result = evaluate_and_report(
        config, BUILT_IN, sets, params, read_out.inner, read_out.scale, adapted=True
    )
    drop_checkpoints(config)
    return result


def drop_checkpoints(config: Config) -> None:
    """Delete those of the adaptations, which only a run that is not finished needs."""
    for folder in (config.run.checkpoint_dir / "adaptation").glob("*/checkpoints"):
        shutil.rmtree(folder)


def with_features(config: Config, data: Data) -> Data:
    """The same data set with the features of the backbone that `config` names."""
    from vd.features.backbone import find_backbone
    from vd.features.extract import extract

    backbone = find_backbone(config.backbone)
    *_, seen = seen_by(backbone, data.ledger.usable(), config)
    store, _ = extract(
        data.videos, config, backbone
    )  # the ledger lists broken ones too
    return data._replace(store=store, backbone=backbone, seen=seen)


def adapt_stream(
    images: Config,
    settings: AdaptConfig,
    stream: StreamName,
    data: Data,
    opened: Opened,
    clips: Clips,
) -> StreamResult:
    """Adapt a network to the images of a stream, or go on."""
    from vd.training.adapt import Adaptation
    from vd.training.feature_set import TRAINED_SHARE, FeatureSet

    if len(settings.streams) > 1:
        say(f"{stream}:")
    train_set = FeatureSet(clips.parts["train"], data.store, share=TRAINED_SHARE)
    adaptation = Adaptation(
        images, settings, stream, images.run.checkpoint_dir, opened.devices,
        opened.batch_size, clips.rows,
    )  # fmt: skip
    if "val" in clips.parts:
        return StreamResult(adaptation.on_all(train_set), None)
    return StreamResult(*adaptation.with_inner_folds(train_set, clips.inner))


def adapted_features(
    config: Config, settings: AdaptConfig, data: Data, results: Sequence[StreamResult]
) -> tuple[Config, Data]:
    """The run that reads the networks out, and its features; writes backbone.npz."""
    from vd.features.network import write_networks
    from vd.training.adapt import frozen_network
    from vd.training.readout import READ_OUT

    run_dir = config.run.checkpoint_dir
    networks = [result.adapted.network for result in results]
    if settings.frozen_streams:
        networks.append(frozen_network(settings))
    write_networks(run_dir / "backbone.npz", networks, half=True)
    config = replace(
        config,
        backbone=BackboneConfig(backbone=str(run_dir / "backbone.npz")),
        model=READ_OUT,
        run=replace(config.run, fresh=False),
    )
    return config, with_features(config, data)


def read_results(
    results: Sequence[StreamResult],
    sets: "dict[str, FeatureSet]",
    held: Sequence[Sequence[Video]],
) -> "ReadOut":
    """The read-out of `adapted_features` in `sets`; `held` are the inner folds."""
    from vd.training.readout import read_together

    inner = [result.inner for result in results if result.inner is not None]
    parts = [result.adapted.read_out for result in results]
    return read_together(parts, None if "val" in sets else inner, sets, held)


def write_metrics(config: Config, settings: AdaptConfig) -> None:
    """Write metrics.jsonl of the run: the lines of each stream's, which name it."""
    from vd.training.log import read_metrics

    run_dir = config.run.checkpoint_dir
    lines = [
        json.dumps({"stream": stream, **row}) + "\n"
        for stream in settings.streams
        for row in read_metrics(run_dir / "adaptation" / stream, every_phase=True)
    ]
    write_text(run_dir / "metrics.jsonl", "".join(lines))
