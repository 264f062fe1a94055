"""A run for other runtimes: what the files compute, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from tests.broken import render, rotated
from tests.command_line import vd
from tests.decoding import decode_all
from tests.fabricated import write_tiny_backbone
from vd.config import BackboneConfig, ModelConfig
from vd.data.decode import FrameSettings
from vd.data.streams import STREAMS
from vd.errors import VdError
from vd.evaluation.restore import restore
from vd.export import example
from vd.export.detector_onnx import head_model
from vd.export.joined_onnx import backbone_model, joined_model
from vd.export.stablehlo import write_backbone
from vd.features.backbone import find_backbone
from vd.features.engines import OnnxEngine
from vd.features.extract import frame_features
from vd.features.network import built_in_network, write_networks
from vd.models.detector import Detector
from vd.models.head import apply, init_params

DIM, SIDE = 6, 64
WITHOUT = """
import runpy, sys
for name in ("vd", "jax", "av", "scipy", "onnx"):
    sys.modules[name] = None  # an import of it fails
script, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The folder of an ONNX export, and its parity."""
    out = tmp_path_factory.mktemp("export") / "onnx"
    done = vd("export", trained[0] / "run", "--out", out)
    assert json.loads(done.stdout) == json.loads((out / "parity.json").read_text())
    return out, json.loads(done.stdout)


def session_of(model):
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def made_up_clips(clips=3, frames=7, dim=DIM):
    """Features with padding of large values, their lengths and mask."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(clips, frames, dim)).astype(np.float16)
    length = np.arange(frames, frames - clips, -1) - 1
    length[-1] = 1  # no difference between frames
    mask = (np.arange(frames) < length[:, None]).astype(np.float32)
    features[mask == 0] = 100
    return features, length, mask


def made_up_params(head, dim=DIM):
    """Parameters, none of them 0."""
    params = init_params(head, dim, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    generator = np.random.default_rng(0)
    drawn = [leaf + 0.3 * generator.random(leaf.shape, np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, drawn)


def moving_blobs(count):
    """Smooth frames: decoders differ in how they scale up the colours of noise."""
    noise = np.random.default_rng(0).random((96, 128, 3), np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 5)
    smooth = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return [np.roll(smooth, 4 * index, axis=1) for index in range(count)]


def test_an_export_differs_from_its_run_by_float32_and_by_the_decoder(exported):
    out, parity = exported
    names = ["backbone.onnx", "example.py", "head.onnx", "model.onnx", "parity.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert parity["head"]["windows"] == parity["whole_way"]["clips"] == 8
    assert parity["head"]["features"] == "test clips"
    assert 0 < parity["head"]["largest_logit_difference"]["float32"] < 1e-5
    assert 0 < parity["whole_way"]["largest_probability_difference"] < 0.03
    for clip in parity["whole_way"]["per_clip"]:
        assert abs(clip["vd"] - clip["example"]) < 0.03


def test_the_models_say_how_they_are_used(exported, trained):
    restored = restore(trained[0] / "run")
    for name in ("head", "model"):
        session = session_of(str(exported[0] / f"{name}.onnx"))
        settings = session.get_modelmeta().custom_metadata_map
        assert float(settings["threshold"]) == restored.calibration.threshold
        assert float(settings["temperature"]) == restored.calibration.temperature
        assert settings["streams"] == "rgb,motion,square"
        assert (settings["clip_frames"], settings["size"]) == ("32", "32")
        assert float(settings["frames_per_second"]) == 8


def test_the_example_runs_without_vd_and_jax(exported, clips, tmp_path):
    path = str(next(clips.glob("test/violent/*.mp4")))
    longer = str(render(tmp_path / "longer.mp4", moving_blobs(150)))  # two windows
    script = str(exported[0] / "example.py")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, script, path, longer, "missing.mp4"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # of the missing file
    good, long, missing = map(json.loads, done.stdout.splitlines())
    expected = {c["path"]: c["example"] for c in exported[1]["whole_way"]["per_clip"]}
    assert good["probability"] == expected[path]
    assert good["peak"] == good["probability"]  # one window
    assert long["peak"] > long["probability"]
    nothing = dict.fromkeys(["probability", "peak", "label"])
    assert missing == {"path": "missing.mp4", **nothing}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"projection_size": 0},
        {"linear_path": True},
        {"linear_path": True, "hidden_size": 0},
    ],
)
def test_a_head_computes_what_its_graph_does(settings):
    config = replace(ModelConfig(7, 5, 4, mixed_precision=False), **settings)
    head = Detector(config)
    params = made_up_params(head)
    features, length, mask = made_up_clips()
    expected = np.asarray(apply(head, params, features, mask))
    session = session_of(head_model(config, params, DIM, 2.0, {}))
    inputs = {"features": features.astype(np.float32), "length": length}
    probability, logit = session.run(["probability", "logit"], inputs)
    np.testing.assert_allclose(logit, expected, atol=2e-6)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-expected / 2)), atol=1e-6)


@pytest.mark.parametrize("how", [{}, {"channels_first": True}, {"of_bytes": True}])
def test_a_users_backbone_is_joined(tmp_path, how):
    path = write_tiny_backbone(tmp_path / "user.onnx", dim=2, **how)
    scale = {} if "of_bytes" in how else {"backbone_mean": 100.0, "backbone_std": 50.0}
    backbone = find_backbone(BackboneConfig(backbone=str(path), **scale))
    images = np.random.default_rng(1).integers(
        0, 255, (2, 5, 3, 32, 32, 3), dtype=np.uint8
    )
    network = backbone_model(backbone, 2)
    flat = images.reshape(-1, 32, 32, 3)
    engine = OnnxEngine(backbone)(flat)
    (features,) = session_of(network).run(["features"], {"images": flat})
    np.testing.assert_allclose(features, engine, rtol=1e-5, atol=1e-6)
    config = ModelConfig(5, 5, 4, mixed_precision=False)
    params = made_up_params(Detector(config))
    model = joined_model(backbone, network, config, params, DIM, 1.0, {})
    length = np.array([5, 3])
    mask = (np.arange(5) < length[:, None]).astype(np.float32)
    stored = engine.astype(np.float16).reshape(2, 5, DIM)
    (logit,) = session_of(model).run(["logit"], {"images": images, "length": length})
    expected = apply(Detector(config), params, stored, mask)
    np.testing.assert_allclose(logit, np.asarray(expected), atol=1e-4)


def test_a_users_backbone_that_cannot_be_joined_is_refused(tmp_path):
    path = write_tiny_backbone(tmp_path / "user.onnx", batch=1)
    with pytest.raises(VdError, match="takes batches of 1 only"):
        backbone_model(find_backbone(BackboneConfig(backbone=str(path))), 8)
    old = onnx.load(write_tiny_backbone(path))
    old.opset_import[0].version = 12
    onnx.save(old, path)
    with pytest.raises(VdError, match="is of ONNX opset 12, and the detector needs 13"):
        backbone_model(find_backbone(BackboneConfig(backbone=str(path))), 8)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["fast", "default"])
def test_built_in_backbones_are_joined(preset):
    backbone = find_backbone(BackboneConfig(feature_preset=preset))
    dim = 1280 * len(backbone.streams)
    config = ModelConfig(3, 5, 4, mixed_precision=False)
    params = made_up_params(Detector(config), dim)
    network = backbone_model(backbone, 1280)
    model = joined_model(backbone, network, config, params, dim, 1.0, {})
    shape = 1, 3, len(backbone.streams), backbone.size, backbone.size, 3
    images = np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
    inputs = {"images": images, "length": np.array([3])}
    (logit,) = session_of(model).run(["logit"], inputs)
    features = OnnxEngine(backbone)(images[0].reshape(-1, *shape[3:]))
    stored = features.astype(np.float16).reshape(1, 3, dim)
    expected = apply(Detector(config), params, stored, np.ones((1, 3), np.float32))
    np.testing.assert_allclose(logit, np.asarray(expected), atol=1e-4)


@pytest.mark.slow
def test_several_networks_are_joined(tmp_path):
    """A frame's images go in, and each network takes the streams that it reads."""
    lite0 = replace(built_in_network("efficientnet-lite0"), size=32, ranges=None)
    doubled = {name: 1.1 * value for name, value in lite0.parameters.items()}
    networks = [
        replace(lite0, streams=("square",), parameters=doubled),
        replace(lite0, streams=("motion", "square")),
    ]
    write_networks(tmp_path / "two.npz", networks, half=True)
    backbone = find_backbone(BackboneConfig(backbone=str(tmp_path / "two.npz")))
    network, dim = backbone_model(backbone, 1280), 3 * 1280
    frames = np.random.default_rng(1).integers(0, 255, (6, 2, 32, 32, 3), np.uint8)
    expected = frame_features(frames, OnnxEngine(backbone), "a.mp4").reshape(6, dim)
    (features,) = session_of(network).run(["features"], {"images": frames})
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    write_backbone(backbone, tmp_path)
    content = bytearray((tmp_path / "backbone.jax").read_bytes())
    found = jax.export.deserialize(content).call(frames)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    config = ModelConfig(3, linear_path=True, hidden_size=0, mixed_precision=False)
    params = made_up_params(Detector(config), dim)
    model = joined_model(backbone, network, config, params, dim, 1.0, {})
    inputs = {"images": frames.reshape(2, 3, 2, 32, 32, 3), "length": np.array([3, 3])}
    (logit,) = session_of(model).run(["logit"], inputs)
    stored = expected.reshape(2, 3, dim)
    by_vd = apply(Detector(config), params, stored, np.ones((2, 3), np.float32))
    np.testing.assert_allclose(logit, np.asarray(by_vd), rtol=1e-4)


def test_the_head_is_exported_as_stablehlo(trained, tmp_path):
    arguments = "--format", "stablehlo", "--out", tmp_path / "out"
    done = vd("export", trained[0] / "run", *arguments)
    names = ["backbone.onnx", "head.jax", "head.mlirbc", "parity.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert "JAX does not run" in done.stderr  # the user's backbone
    parity = json.loads(done.stdout)
    assert parity["head"]["largest_logit_difference"]["float32"] < 1e-5
    exported = jax.export.deserialize(
        bytearray((tmp_path / "out" / "head.jax").read_bytes())
    )
    features = np.ones((2, 32, 24), np.float16)  # of any number of clips
    assert exported.call(features, np.ones((2, 32), np.float32)).shape == (2,)


def test_a_run_folder_is_not_written_into(trained):
    run = trained[0] / "run"
    done = vd("export", run, "--out", run, code=2)
    assert f"--out {run} is a run folder" in done.stderr


def test_without_the_clips_the_head_alone_is_compared(trained, tmp_path):
    arguments = "--out", tmp_path / "out", "--dataset-path", tmp_path / "nowhere"
    done = vd("export", trained[0] / "run", *arguments)
    parity = json.loads(done.stdout)
    assert parity["head"]["features"] == "random"
    assert parity["whole_way"] is None
    assert "name the data set's place with --dataset-path" in done.stderr


@pytest.mark.parametrize(
    ("fps", "options", "turns"),
    [(25, {}, 0), (30, {"b_frames": 2}, 0), (12, {}, 1), (7, {}, 0), (60, {}, 3)],
)
def test_the_example_sees_the_frames_and_streams_that_vd_sees(
    tmp_path, fps, options, turns
):
    path = render(tmp_path / "a.mp4", moving_blobs(2 * fps + 3), fps=fps, **options)
    path.write_bytes(rotated(path.read_bytes(), turns))
    settings = FrameSettings(SIDE, SIDE, streams=("rgb", "motion", "square"))
    expected, _ = decode_all(path, settings)
    facts = {
        "frames_per_second": "8", "motion_gap_seconds": "0.1", "size": str(SIDE),
        "streams": "rgb,motion,square",
    }  # fmt: skip
    pairs = example.pairs(str(path), facts)
    images = np.array([example.streams(*pair, facts) for pair in pairs])
    assert images.shape == expected.shape
    away = np.abs(images.astype(int) - expected).mean(axis=(0, 2, 3, 4))
    assert away.max() < 6  # of 255; of frames one further they differ by 14 and more


def test_the_example_cuts_squares_as_vd_does():
    settings = STREAMS["square"].settings
    assert settings == {
        "fine": example.FINE, "energy": example.ENERGY, "least": example.LEAST,
    }  # fmt: skip
    assert set(example.STREAMS) == set(STREAMS)


def test_the_example_scores_blocks_and_a_last_window_at_the_end():
    seen = []

    def run(_, inputs):
        seen.append((inputs["images"][0].tolist(), inputs["length"].tolist()))
        return [[0.0]]

    session = SimpleNamespace(run=run)
    for count in (0, 1, 4, 5):
        images = map(np.array, range(count))
        list(example.window_logits(session, images, 2))
    assert [window for window, _ in seen] == [
        [0], [0, 1], [2, 3], [0, 1], [2, 3], [3, 4],
    ]  # fmt: skip
    assert [length for _, length in seen] == [[1], *[[2]] * 5]
