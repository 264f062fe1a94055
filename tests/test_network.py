"""Networks as values and as files: bits kept, engines agree, damage is one sentence."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from tests.command_line import train, vd
from vd.config import BackboneConfig
from vd.data.fingerprints import as_text
from vd.errors import VdError
from vd.features import backbone, engines
from vd.features.backbone import PRESETS, find_backbone
from vd.features.efficientnet_onnx import measured_ranges
from vd.features.engines import make_engine
from vd.features.extract import frame_features
from vd.features.network import built_in_network, read_networks, write_networks
from vd.features.store import features_description, fingerprint, open_store
from vd.files import read_csv

LITE0 = "efficientnet-lite0"
INT8 = f"{LITE0}-int8"
SMALL = np.full((8, 16, 16), 7, np.uint8)
ROW = {
    "id": "ab12",
    "group": "camera 1",
    "dataset": "f00d",
    "fingerprint": as_text(SMALL),
}
SEEN = {"trained_on": [ROW], "chosen_on": []}


def backbone_of(path, **settings):
    return find_backbone(BackboneConfig(backbone=str(path), **settings))


def images(count, side):
    """Blobs of many sizes: their features are larger than those of noise."""
    rng = np.random.default_rng(side)
    coarse = rng.integers(0, 256, (count, side // 16, side // 16, 3))
    fine = rng.integers(-40, 40, (count, side, side, 3))
    blobs = coarse.repeat(16, axis=1).repeat(16, axis=2)
    return np.clip(blobs + fine, 0, 255).astype(np.uint8)


def perturbed(network, seed=0):
    """The network with every weight moved by a tenth or so: an adapted one's stand-in."""
    rng = np.random.default_rng(seed)
    parameters = {
        name: (value * rng.normal(1, 0.1, value.shape)).astype(np.float32)
        for name, value in network.parameters.items()
    }
    return replace(network, parameters=parameters, ranges=None)


@pytest.fixture(scope="module")
def lite0():
    return built_in_network(LITE0)


@pytest.fixture(scope="module")
def adapted(lite0):
    """A small adapted network for motion."""
    return replace(perturbed(lite0), size=32, streams=("motion",), seen=SEEN)


def test_a_file_of_networks_is_read_once(tmp_path, adapted, monkeypatch):
    write_networks(tmp_path / "a.npz", [adapted])
    times = []
    read = backbone.read_networks
    monkeypatch.setattr(backbone, "read_networks", lambda p: times.append(p) or read(p))
    make_engine(backbone_of(tmp_path / "a.npz"), "onnxruntime")
    assert times == [tmp_path / "a.npz"]


@pytest.mark.parametrize("half", [False, True])
def test_a_network_comes_back_to_the_bit(tmp_path, adapted, half):
    ranges = measured_ranges(adapted, images(2, 32))
    network = replace(adapted, ranges=ranges, quantized=True)
    write_networks(tmp_path / "a.npz", [network], half)
    found = read_networks(tmp_path / "a.npz")[0]
    assert replace(found, parameters={}).__dict__ == (
        replace(network, parameters={}).__dict__
    )
    expected = (network.rounded() if half else network).parameters
    assert expected.keys() == found.parameters.keys()
    for name, value in expected.items():
        assert found.parameters[name].dtype == np.float32
        np.testing.assert_array_equal(found.parameters[name], value)
    size = (tmp_path / "a.npz").stat().st_size
    assert size / 1e6 == pytest.approx(6.7 if half else 13.4, rel=0.02)
    if half:  # rounded, and by no more than float16 rounds
        stem = adapted.parameters["stem.kernel"]
        assert (found.parameters["stem.kernel"] != stem).any()
        np.testing.assert_allclose(found.parameters["stem.kernel"], stem, 1e-3, 1e-7)


def test_equal_networks_give_equal_files_whatever_the_order_of_their_weights(
    tmp_path, adapted
):
    other = {
        name: np.asfortranarray(adapted.parameters[name])
        for name in sorted(adapted.parameters)
    }
    write_networks(tmp_path / "a.npz", [adapted])
    write_networks(tmp_path / "b.npz", [replace(adapted, parameters=other)])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("name", [LITE0, INT8])
def test_a_file_of_the_built_in_network_gives_its_features_to_the_bit(tmp_path, name):
    write_networks(tmp_path / "same.npz", [built_in_network(name)])
    found = backbone_of(tmp_path / "same.npz")
    assert found.streams == PRESETS["default"].streams
    pictures = images(3, 224)
    built_in, of_file = (
        engines.OnnxEngine(backbone)(pictures)
        for backbone in (backbone_of(name), found)
    )
    assert built_in.max() > 1
    np.testing.assert_array_equal(of_file, built_in)


@pytest.fixture
def three(tmp_path, lite0, adapted):
    """Files of three networks, and of each alone; the third reads what both others read."""
    networks = [
        adapted,
        replace(
            adapted, streams=("square",), parameters=perturbed(lite0, 1).parameters
        ),
        replace(lite0, size=32, ranges=None, streams=("motion", "rgb", "square")),
    ]
    write_networks(tmp_path / "all.npz", networks)
    for number, network in enumerate(networks):
        write_networks(tmp_path / f"{number}.npz", [network])
    return tmp_path


@pytest.mark.parametrize("engine", ["onnxruntime", "jax"])
def test_features_of_several_networks_are_those_of_each_side_by_side(
    three, engine, monkeypatch
):
    monkeypatch.setattr(engines, "_JAX_BATCH", 2)
    together = backbone_of(three / "all.npz")
    assert together.frames.streams == ("motion", "square", "rgb")
    assert together.vectors == 5
    frames = images(12, 32).reshape(4, 3, 32, 32, 3)
    found = frame_features(frames, make_engine(together, engine), "a.mp4")
    assert found.shape == (4, 5, 1280)
    assert (found != found[:, :1]).any()
    expected = []
    for number, places in enumerate([[0], [1], [0, 2, 1]]):
        alone = make_engine(backbone_of(three / f"{number}.npz"), engine)
        expected.append(frame_features(frames[:, places], alone, "a.mp4"))
    np.testing.assert_array_equal(found, np.concatenate(expected, axis=1))


def test_several_networks_make_a_store_and_have_seen_what_each_has(
    tmp_path, three, adapted
):
    together = backbone_of(three / "all.npz")
    assert together.seen == SEEN  # once, though two networks have seen it
    store = open_store(tmp_path / "cache", together, 1280)
    assert store.streams * store.dim == 5 * 1280
    other = {**ROW, "id": "cd34"}
    chosen = replace(adapted, seen={"trained_on": [other], "chosen_on": [ROW]})
    write_networks(three / "two.npz", [adapted, chosen])
    found = backbone_of(three / "two.npz").seen
    assert found == {"trained_on": [ROW, other], "chosen_on": [ROW]}
    preset = replace(adapted, streams=())
    write_networks(three / "preset.npz", [adapted, preset])
    found = backbone_of(three / "preset.npz")
    assert found.streams == ("motion", "rgb", "square")
    assert found.reads == (("motion",), ("rgb", "motion", "square"))


def test_networks_of_other_image_sides_are_not_written_together(tmp_path, adapted):
    for networks in ([], [adapted, replace(adapted, size=64)]):
        with pytest.raises(ValueError, match="take images of the sizes"):
            write_networks(tmp_path / "a.npz", networks)


@pytest.mark.parametrize("side", [160, 224])
def test_engines_agree_on_other_weights(tmp_path, lite0, side, monkeypatch):
    monkeypatch.setattr(engines, "_JAX_BATCH", 1)
    write_networks(tmp_path / "b.npz", [replace(perturbed(lite0, side), size=side)])
    found = backbone_of(tmp_path / "b.npz")
    assert found.size == side
    ours, theirs = (
        make_engine(found, name)(images(2, side)) for name in ("onnxruntime", "jax")
    )
    assert ours.max() > 1
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def test_eight_bits_over_the_networks_own_ranges_are_near_the_floats(tmp_path, lite0):
    floats = replace(perturbed(lite0), size=160)
    pictures = images(12, 160)
    ranges = measured_ranges(floats, pictures[:8])
    narrow = {name: [low / 4, high / 4] for name, (low, high) in ranges.items()}
    made = {}
    for name, network in {
        "floats": floats,
        "integers": replace(floats, ranges=ranges, quantized=True),
        "narrow": replace(floats, ranges=narrow, quantized=True),
    }.items():
        write_networks(tmp_path / f"{name}.npz", [network])
        features = engines.OnnxEngine(backbone_of(tmp_path / f"{name}.npz"))(pictures)
        made[name] = features[8:]
    for name, least, most in (("integers", 0.9, 0.9999), ("narrow", 0, 0.9)):
        cosines = cosine_similarity(made["floats"], made[name]).diagonal()
        assert least < cosines.min() <= cosines.max() < most, name
    with pytest.raises(VdError, match="--engine jax runs"):
        make_engine(backbone_of(tmp_path / "integers.npz"), "jax")


def test_fingerprints_of_built_in_stores_are_those_of_existing_stores():
    made = {
        preset: fingerprint(
            features_description(find_backbone(BackboneConfig(feature_preset=preset)))
        )
        for preset in PRESETS
    }
    assert made == {
        "fast": "1b4a5c6aeddfecdc",
        "default": "01c4d66b1b78c4ff",
        "best": "accee25664e672ee",
    }


def test_a_built_in_network_takes_images_of_any_size(tmp_path, lite0):
    small = backbone_of(LITE0, backbone_size=64)
    assert (small.frames.width, small.frames.height) == (64, 64)
    own = fingerprint(features_description(backbone_of(LITE0)))
    assert fingerprint(features_description(small)) != own
    pictures = images(3, 64)
    features = make_engine(small, "onnxruntime")(pictures)
    np.testing.assert_allclose(make_engine(small, "jax")(pictures), features, atol=1e-4)
    # as from the file of the same network at that size
    write_networks(tmp_path / "a.npz", [replace(lite0, size=64)])
    of_file = make_engine(backbone_of(tmp_path / "a.npz"), "onnxruntime")
    np.testing.assert_array_equal(of_file(pictures), features)


def test_the_size_of_a_preset_is_that_of_its_own_network():
    fast = find_backbone(BackboneConfig("fast"))
    assert (fast.name, fast.size, fast.networks[0].size) == (INT8, 160, 160)
    assert find_backbone(BackboneConfig("fast", INT8)).size == 224
    assert find_backbone(BackboneConfig("fast", backbone_size=96)).size == 96


def test_content_alone_is_in_the_fingerprint(tmp_path, adapted):
    write_networks(tmp_path / "a.npz", [adapted])
    shutil.copy(tmp_path / "a.npz", tmp_path / "renamed.npz")
    others = {
        "weights": perturbed(adapted, 1),
        "streams": replace(adapted, streams=("square",)),
        "size": replace(adapted, size=64),
        "seen": replace(adapted, seen={}),
    }
    for name, network in others.items():
        write_networks(tmp_path / f"{name}.npz", [network])
    marks = {
        path.stem: fingerprint(features_description(backbone_of(path)))
        for path in tmp_path.glob("*.npz")
    }
    assert marks["a"] == marks.pop("renamed")
    assert len(set(marks.values())) == len(marks) == 5


@pytest.mark.parametrize("preset", PRESETS)
def test_size_and_streams_of_the_file_win_over_the_presets(tmp_path, adapted, preset):
    write_networks(tmp_path / "a.npz", [adapted])
    found = backbone_of(tmp_path / "a.npz", feature_preset=preset)
    assert (found.frames.height, found.frames.width) == (32, 32)
    assert found.frames.streams == ("motion",)
    assert found.views == PRESETS[preset].views


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-100], "it is no archive"),
        (lambda content: content[:9000] + b"\0\1" + content[9002:], "Bad CRC-32"),
        (lambda content: b"", "it is no archive"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, adapted, damage, words):
    path = tmp_path / "a.npz"
    write_networks(path, [adapted])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(VdError, match=rf"a\.npz is damaged or .*{words}"):
        backbone_of(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variant": "efficientnet-lite2"}, "is missing or has another name or shape"),
        ({"quantized": True}, "computes in 8 bits and has no ranges"),
        ({"format": 1}, "another format than 2"),
        ({"colour": "red"}, "unexpected keyword"),
        ({"streams": ["smell"]}, "the stream 'smell', which is none of rgb, motion"),
    ],
)
def test_what_a_file_says_wrongly_is_named(tmp_path, adapted, changes, words):
    path = tmp_path / "a.npz"
    write_networks(path, [adapted])
    arrays = dict(np.load(path))
    fields = json.loads(arrays["network"].tobytes())
    (fields if "format" in changes else fields["networks"][0]).update(changes)
    arrays["network"] = np.frombuffer(json.dumps(fields).encode(), np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(VdError, match=words):
        backbone_of(path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("0.stem.bias", np.full(32, np.nan, np.float32), "stem.bias has values"),
        ("0.stem.bias", np.zeros(31, np.float32), "stem.bias is missing or has"),
        ("0.stem.bias", np.zeros(32, np.int64), "stem.bias has values"),
        ("0.stem.bias", np.full(32, {}, object), "is damaged"),  # a pickle
        ("0.more", np.zeros(1, np.float32), "more is missing or has"),
        ("1.stem.bias", np.zeros(32, np.float32), "belongs to none of its networks"),
    ],
)
def test_wrong_weights_are_named(tmp_path, adapted, name, value, words):
    path = tmp_path / "a.npz"
    write_networks(path, [adapted])
    np.savez(path, **dict(np.load(path)) | {name: value})
    with pytest.raises(VdError, match=words):
        backbone_of(path)


@pytest.mark.parametrize("flag", ["size", "mean", "std"])
def test_flags_of_what_the_file_says_are_refused(tmp_path, adapted, flag):
    write_networks(tmp_path / "a.npz", [adapted])
    with pytest.raises(VdError, match=rf"^--backbone-{flag}: .*a\.npz has its own"):
        backbone_of(tmp_path / "a.npz", **{f"backbone_{flag}": 64})


def test_a_network_that_cannot_be_computed_is_not_written(tmp_path, adapted):
    bias = np.full(32, np.inf, np.float32)
    wrong = replace(adapted, parameters={**adapted.parameters, "stem.bias": bias})
    with pytest.raises(ValueError, match=r"stem\.bias has values"):
        write_networks(tmp_path / "a.npz", [wrong])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_that_has_moved_predicts_without_the_file_it_was_given(
    tmp_path, clips, adapted
):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    write_networks(here / "a.npz", [adapted], half=True)
    train(clips, here / "a.npz", here, "--epochs", "1")
    content = (here / "a.npz").read_bytes()
    shutil.copytree(here / "run", there)
    shutil.rmtree(here)
    assert (there / "backbone.npz").read_bytes() == content
    described = json.loads((there / "config.json").read_text())["preprocessing"]
    assert (described["height"], described["streams"]) == (32, ["motion"])
    assert described["dim"] == 1280
    row = read_csv(there / "predictions_test.csv")[0]
    printed = vd("predict", "--checkpoint-dir", there, clips / row["path"]).stdout
    assert json.loads(printed)["probability"] == float(row["probability"])
    write_networks(there / "backbone.npz", [replace(adapted, size=64)])
    done = vd("predict", "--checkpoint-dir", there, clips / row["path"], code=2)
    assert "trained on other features" in done.stderr
