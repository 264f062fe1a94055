"""Adaptation: the backbone's upper blocks are trained on images, with a linear read-out."""

import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rendering.clips import render_dataset
from tests.command_line import digests, vd
from vd.config import AdaptConfig, DataConfig, ModelConfig
from vd.data.catalog import identify
from vd.data.manifest import read_manifest
from vd.devices import prepare_jax
from vd.errors import VdError
from vd.features.network import built_in_network, read_networks
from vd.features.seen import contents_fingerprint
from vd.files import read_csv
from vd.models.adapter import Adapter
from vd.models.head import apply, init_params
from vd.training import image_augment, refit
from vd.training.image_augment import augment_motion, augment_rgb
from vd.training.log import read_metrics
from vd.training.step import Batch

SIDE = 32
STREAMS = "motion", "square"
TOGETHER = "--streams", *STREAMS, "--frozen-streams", *STREAMS
FEW = (
    "--size", SIDE, "--fixed-blocks", 17, "--epochs", 2, "--warmup-epochs", 1,
    "--learning-rate", 0.002,
)  # fmt: skip


def batch_of(images_BxTxHxWx3, frames=None):
    clips, count = images_BxTxHxWx3.shape[:2]
    mask = np.zeros((clips, count), np.float32)
    mask[:, : frames or count] = 1
    flat = images_BxTxHxWx3.reshape(clips, count, -1).astype(np.float16)
    return Batch(
        jnp.asarray(flat), jnp.asarray(mask), np.zeros(clips), np.arange(clips)
    )


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed, impl="threefry2x32"), count)


def test_a_share_of_a_line_is_stretched_to_its_whole():
    resampling = image_augment._resampling
    np.testing.assert_allclose(resampling(6, 1.0, 0.3, False), np.eye(6), atol=1e-6)
    np.testing.assert_allclose(
        resampling(6, 1.0, 0.3, True), np.eye(6)[::-1], atol=1e-6
    )
    line = np.arange(8.0)
    # the right half, 4 to 8, at pixels half as large: centres 3.75, 4.25, … within 0 to 7
    half = np.asarray(resampling(8, 0.5, 1.0, False)) @ line
    np.testing.assert_allclose(
        half, [3.75, 4.25, 4.75, 5.25, 5.75, 6.25, 6.75, 7], atol=1e-5
    )


def test_augmentation_takes_a_frame_of_each_sixth_of_the_present_ones():
    frames = np.arange(20, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(frames, (3, 20, 8, 8, 3))
    result = augment_rgb(batch_of(images, frames=12), keys(3))
    drawn = np.asarray(result.features_BxTxD)[:, :, 0]
    assert result.features_BxTxD.shape == (3, 6, 8 * 8 * 3)
    assert np.array_equal(drawn.round() // 2, [[0, 1, 2, 3, 4, 5]] * 3)
    assert len({tuple(clip) for clip in drawn.round()}) == 3


def test_no_motion_stays_no_motion_and_time_is_reversed_half_of_the_time():
    still = augment_motion(batch_of(np.full((2, 6, 8, 8, 3), 127)), keys(2))
    np.testing.assert_allclose(still.features_BxTxD, 127)
    brighter = augment_motion(batch_of(np.full((200, 6, 8, 8, 3), 147)), keys(200))
    value = np.asarray(brighter.features_BxTxD)[:, 0, 0]
    assert 60 < np.sum(value < 127) < 140
    np.testing.assert_array_less(np.abs(np.log(np.abs(value - 127) / 20)), 0.3 + 1e-4)


def test_the_adapter_begins_as_the_pretrained_network_and_reads_the_mean_of_frames():
    head = Adapter(ModelConfig(clip_frames=3), fixed_blocks=17)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, SIDE, SIDE, 3))
    batch = batch_of(images, frames=2)
    clips = batch.features_BxTxD, batch.mask_BxT
    params = init_params(head, SIDE * SIDE * 3, jax.random.key(0))
    assert set(params) == {"head_kernel", "head_bias", "readout_kernel", "readout_bias"}
    weights = np.random.default_rng(1).normal(size=1280).astype(np.float32)
    params = {**params, "readout_kernel": weights, "readout_bias": np.float32(0.5)}
    network = replace(built_in_network("efficientnet-lite0"), size=SIDE)
    features = features_by_onnx(network, images.reshape(-1, SIDE, SIDE, 3)).reshape(
        2, 3, -1
    )
    expected = features[:, :2].mean(1) @ weights + 0.5
    scored = jax.jit(partial(apply, head))(params, *clips)
    np.testing.assert_allclose(scored, expected, atol=2e-3)
    trained = jax.jit(partial(apply, head))(
        params, *clips, np.ones((2, 1280), np.float32)
    )
    np.testing.assert_allclose(trained, expected, atol=2e-3)


def features_by_onnx(network, images):
    import onnxruntime

    from vd.features.efficientnet_onnx import onnx_model

    session = onnxruntime.InferenceSession(
        onnx_model(network).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": images.astype(np.uint8)})[0]


def run_adapt(clips, folder, *extra, code=0):
    return vd(
        "adapt", "--dataset-path", clips, "--cache-dir", folder / "cache",
        "--checkpoint-dir", folder / "run", *FEW, *extra, code=code,
    )  # fmt: skip


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, clips):
    folder = tmp_path_factory.mktemp("adapted")
    return folder, run_adapt(clips, folder, *TOGETHER)


@pytest.mark.slow
def test_an_adapted_run_is_a_run(adapted, clips):
    folder, done = adapted
    run = folder / "run"
    assert done.stderr.count("adapting 5 times") == 2
    *networks, frozen = read_networks(run / "backbone.npz")
    before = built_in_network("efficientnet-lite0").rounded().parameters
    splits = {row["id"]: row["split"] for row in read_csv(run / "splits.csv")}
    here = contents_fingerprint(
        identify(read_manifest(DataConfig(clips)).videos, folder)
    )
    for network, stream in zip(networks, STREAMS, strict=True):
        assert changed(network, before) == {"head.kernel", "head.bias"}
        assert (network.size, network.streams) == (SIDE, (stream,))
        trained_on = {row["id"] for row in network.seen["trained_on"]}
        assert trained_on == {name for name, split in splits.items() if split != "test"}
        assert network.seen["chosen_on"] == []  # its length is fixed
        assert {row["dataset"] for row in network.seen["trained_on"]} == {here}
    assert changed(frozen, before) == set()
    assert (frozen.streams, frozen.seen) == (STREAMS, {})
    described = json.loads((run / "config.json").read_text())
    assert described["preprocessing"]["dim"] == 4 * 1280
    rows = read_metrics(run)
    assert [(row["stream"], row["epoch"]) for row in rows] == [
        (stream, epoch) for stream in STREAMS for epoch in (1, 2)
    ]

    result = json.loads((run / "evaluation_test.json").read_text())
    assert result["threshold_source"].startswith("inner folds")
    probe = json.loads((run / "evaluation_probe.json").read_text())
    assert probe["threshold_source"] == "the loss's own threshold"
    refused = vd(
        "crossval", "--dataset-path", clips, "--cache-dir", folder / "cache",
        "--checkpoint-dir", folder / "cv", "--backbone", run / "backbone.npz", code=2,
    )  # fmt: skip
    assert f"the backbone {run / 'backbone.npz'} was adapted on" in refused.stderr
    assert len(read_csv(run / "predictions_val.csv")) == 24

    files = digests(run)
    again = run_adapt(clips, folder, *TOGETHER)
    assert "is finished" in again.stderr
    vd("evaluate", "--checkpoint-dir", run)
    assert digests(run) == files
    row = read_csv(run / "predictions_test.csv")[0]
    predicted = vd("predict", clips / row["path"], "--checkpoint-dir", run)
    assert json.loads(predicted.stdout)["probability"] == float(row["probability"])
    for flags in ((*TOGETHER, "--seed", 1), ("--streams", "motion"), TOGETHER[:-1]):
        refused = run_adapt(clips, folder, *flags, code=2).stderr
        assert "holds another run" in refused
    assert digests(run) == files


def changed(network, before):
    """Names of the parameters that are not as before."""
    same = {k: np.array_equal(v, before[k]) for k, v in network.parameters.items()}
    return {name for name, equal in same.items() if not equal}


def test_streams_are_named_once():
    with pytest.raises(VdError, match=r"^--streams has no stream"):
        AdaptConfig(streams=())
    for name, flag in (
        ("streams", "--streams"),
        ("frozen_streams", "--frozen-streams"),
    ):
        with pytest.raises(VdError, match=f"^{flag} rgb rgb: name each stream once"):
            AdaptConfig(**{name: ("rgb", "rgb")})


def _adapt_until(clips, folder, fold):
    """In a process: adapt, and end it by SIGKILL after an inner fold."""
    prepare_jax(cpu_devices=2)
    original = refit.write_csv

    def write_and_die(path, rows):
        original(path, rows)
        if path.parts[-4:] == ("square", "inner", f"fold-{fold}", "logits.csv"):
            os.kill(os.getpid(), signal.SIGKILL)

    refit.write_csv = write_and_die
    run_adapt(clips, folder, *TOGETHER)


@pytest.mark.slow
def test_a_killed_adaptation_ends_with_the_same_bits(tmp_path, adapted, clips):
    process = get_context("spawn").Process(
        target=_adapt_until, args=(clips, tmp_path, 1)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run_adapt(clips, tmp_path, *TOGETHER)
    names = "backbone.npz", "weights.npz", "predictions_test.csv", "calibration.json"
    for name in names:
        ours, theirs = (folder / "run" / name for folder in (tmp_path, adapted[0]))
        assert ours.read_bytes() == theirs.read_bytes(), name


@pytest.mark.slow
def test_test_clips_change_nothing_that_is_trained(tmp_path, adapted, clips):
    """Their content is noise and their labels are flipped: the same bits are trained."""
    changed = tmp_path / "set"
    shutil.copytree(clips, changed)
    others = render_dataset(tmp_path / "others", clips={"test": 8}, seed=9)
    for old in (changed / "test").rglob("*.*"):
        old.unlink()
    for label, folder in (("violent", "nonviolent"), ("nonviolent", "violent")):
        for path in (others / "test" / label).iterdir():
            shutil.copy(path, changed / "test" / folder / path.name)
    run_adapt(changed, tmp_path, *TOGETHER)
    for name in ("weights.npz", "calibration.json", "predictions_val.csv"):
        ours, theirs = (folder / "run" / name for folder in (tmp_path, adapted[0]))
        assert ours.read_bytes() == theirs.read_bytes(), name
    ours, theirs = (
        read_networks(folder / "run" / "backbone.npz")
        for folder in (tmp_path, adapted[0])
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.ranges == other.ranges
        for name, value in other.parameters.items():
            assert np.array_equal(one.parameters[name], value), name


@pytest.mark.slow
def test_an_adapted_run_is_exported(adapted, tmp_path):
    done = vd("export", adapted[0] / "run", "--out", tmp_path / "out")
    parity = json.loads(done.stdout)
    assert parity["head"]["largest_logit_difference"]["float32"] < 1e-4
    assert parity["whole_way"]["clips"] == 8
    assert parity["whole_way"]["largest_probability_difference"] < 0.03


@pytest.mark.slow
def test_a_cross_validation_adapts_once_a_fold(tmp_path, clips):
    vd(
        "crossval", "--adapt", "--dataset-path", clips, "--cache-dir", tmp_path / "cache",
        "--checkpoint-dir", tmp_path / "cv", "--folds", 2, *FEW, "--frozen-streams",
    )  # fmt: skip
    result = json.loads((tmp_path / "cv" / "crossval.json").read_text())
    assert (result["n"], result["folds"]) == (32, 2)
    for fold in range(2):
        run = tmp_path / "cv" / f"fold-{fold}_seed-0"
        splits = {row["id"]: row["split"] for row in read_csv(run / "splits.csv")}
        tested = {name for name, split in splits.items() if split == "test"}
        assert len(tested) == 16
        (network,) = read_networks(run / "backbone.npz")
        seen = {row["id"] for row in network.seen["trained_on"]}
        assert seen == splits.keys() - tested
        kept = {
            row["path"]: float(row["logit"])
            for path in (run / "adaptation" / "motion" / "inner").rglob("logits.csv")
            for row in read_csv(path)
        }
        validated = read_csv(run / "predictions_val.csv")
        assert {row["path"]: float(row["logit"]) for row in validated} == kept
        assert len(kept) == 16
