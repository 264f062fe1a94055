"""Engines: both forms of the backbone agree, whatever the batch."""

import shutil

import cv2
import numpy as np
import pytest
from onnx import TensorProto, helper, save

from tests.fabricated import write_tiny_backbone
from vd.config import BackboneConfig
from vd.errors import VdError
from vd.features import engines
from vd.features.backbone import PRESETS, find_backbone
from vd.features.engines import make_engine
from vd.features.store import features_description, fingerprint


@pytest.fixture(scope="module")
def backbone():
    return find_backbone(BackboneConfig())


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (5, 224, 224, 3)).astype(np.uint8)


def test_jax_agrees_with_onnx_runtime_and_pads_its_batches(
    backbone, images, monkeypatch
):
    monkeypatch.setattr(engines, "_JAX_BATCH", 2)  # two CPU devices: batches of 4
    jax_engine = make_engine(backbone, "jax")
    ours = jax_engine(images)
    np.testing.assert_allclose(
        ours, make_engine(backbone, "onnxruntime")(images), atol=1e-4
    )
    np.testing.assert_array_equal(
        jax_engine(images[4:]), ours[4:]
    )  # alone in its batch


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite0-int8"])
def test_threads_and_company_change_no_bit(backbone, images, name):
    images = np.stack([cv2.GaussianBlur(image, (0, 0), 9) for image in images])
    images = cv2.normalize(images, None, 0, 255, cv2.NORM_MINMAX)
    found = find_backbone(BackboneConfig(backbone=name))
    one, two = (engines.OnnxEngine(found, threads=n) for n in (1, 2))
    together = two(images)
    np.testing.assert_array_equal(one(images), together)
    for i in range(5):
        np.testing.assert_array_equal(one(images[i : i + 1])[0], together[i])
    assert two(images[:0]).shape == (0, 1280)
    if found.name != backbone.name:  # in integers, near the floats
        floats = engines.OnnxEngine(backbone)(images)
        lengths = np.linalg.norm(floats, axis=1) * np.linalg.norm(together, axis=1)
        assert ((floats * together).sum(1) / lengths > 0.9).all()
        with pytest.raises(VdError, match="--engine jax runs"):
            make_engine(found, "jax")


def test_each_preset_has_a_store_of_its_own():
    made = [find_backbone(BackboneConfig(feature_preset=preset)) for preset in PRESETS]
    assert len({fingerprint(features_description(backbone)) for backbone in made}) == 3


def test_a_run_by_another_engine_is_said(backbone, capsys):
    assert make_engine(backbone, "auto", before="onnxruntime").name == "onnxruntime"
    assert capsys.readouterr().err == ""
    assert make_engine(backbone, "auto", before="jax").name == "onnxruntime"
    assert "those of the run by jax" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone": "resnet50"}, "neither a file nor one of"),
        ({"backbone_mean": 9.0}, "-mean: efficientnet-lite0 has its own; leave it out"),
        ({"backbone_std": 9.0}, "-std: efficientnet-lite0 has its own; leave it out"),
        ({"backbone": __file__}, "cannot be read as an ONNX file"),
    ],
)
def test_wrong_backbones_are_one_sentence(settings, words):
    with pytest.raises(VdError, match=words):
        find_backbone(BackboneConfig(**settings))


@pytest.mark.parametrize("channels_first", [False, True])
def test_an_onnx_file_says_its_size_and_normalisation(tmp_path, channels_first):
    path = write_tiny_backbone(
        tmp_path / "b.onnx",
        channels_first=channels_first,
        metadata={"vd.mean": "127", "vd.std": "64"},
    )
    found = find_backbone(BackboneConfig(backbone=str(path)))
    assert (found.size, found.mean, found.std) == (32, 127.0, 64.0)
    engine = make_engine(found, "auto")
    grey = engine(np.full((5, 32, 32, 3), 127, np.uint8))
    assert grey.shape == (5, 8)
    np.testing.assert_allclose(grey, 0, atol=1e-6)


def test_a_network_for_one_image_gives_what_one_for_any_number_does(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    features = []
    for size in ("N", 1):
        file = write_tiny_backbone(tmp_path / f"{size}.onnx", batch=size)
        config = BackboneConfig(backbone=str(file), backbone_mean=127.5)
        features.append(engines.OnnxEngine(find_backbone(config))(images))
    np.testing.assert_array_equal(features[1], features[0])


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"metadata": {"vd.size": "abc"}}, "wrong metadata.*'abc'"),
        ({"metadata": {"vd.std": "0"}}, "wrong metadata.*from 1e-30"),
        ({"metadata": {"vd.mean": "nan"}}, "wrong metadata.*--backbone-mean"),
        ({"metadata": {"vd.size": "48"}}, "cannot be run on RGB images of side 48"),
        ({"batch": 3}, "export it for batches of any size or of 1"),
        ({"dim": 0}, "gives the shape \\(1, 0\\)"),
    ],
)
def test_networks_that_cannot_serve_are_one_sentence(tmp_path, network, words):
    file = write_tiny_backbone(tmp_path / "tiny.onnx", **network)
    with pytest.raises(VdError, match=words):
        engines.OnnxEngine(find_backbone(BackboneConfig(backbone=str(file))))


def test_a_flag_wins_over_wrong_metadata(tmp_path):
    file = write_tiny_backbone(tmp_path / "tiny.onnx", metadata={"vd.size": "abc"})
    backbone = find_backbone(BackboneConfig(backbone=str(file), backbone_size=32))
    assert backbone.size == 32


def test_weights_in_another_file_are_part_of_the_network(tmp_path):
    beside = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    made = {}
    for name, scale in (("one", 1.0), ("same", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "tiny.onnx"
        write_tiny_backbone(file, scale=scale, **beside)
        assert (tmp_path / name / "weights").exists()
        made[name] = find_backbone(BackboneConfig(backbone=str(file)))
    files = {name: backbone.file.read_bytes() for name, backbone in made.items()}
    assert files["one"] == files["other"]  # all that differs lies beside them
    marks = {name: backbone.description["sha256"] for name, backbone in made.items()}
    assert marks["one"] == marks["same"] != marks["other"]
    copy = tmp_path / "copy.onnx"  # as a run folder has it
    copy.write_bytes(made["other"].content)
    alone = find_backbone(BackboneConfig(backbone=str(copy)))
    assert alone.description["sha256"] == marks["other"]
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(
        engines.OnnxEngine(alone)(images), engines.OnnxEngine(made["other"])(images)
    )
    shutil.copy(made["one"].file, tmp_path / "lost.onnx")  # without its weights
    with pytest.raises(VdError, match=r"lost\.onnx cannot be read as an ONNX file"):
        find_backbone(BackboneConfig(backbone=str(tmp_path / "lost.onnx")))


@pytest.mark.parametrize("flag", ["backbone_mean", "backbone_std"])
def test_a_network_of_bytes_is_given_no_normalisation(tmp_path, flag):
    file = str(write_tiny_backbone(tmp_path / "tiny.onnx", of_bytes=True))
    engine = engines.OnnxEngine(find_backbone(BackboneConfig(backbone=file)))
    assert engine(np.full((2, 32, 32, 3), 100, np.uint8)).any()
    with pytest.raises(VdError, match="are for networks of float images"):
        find_backbone(BackboneConfig(backbone=file, **{flag: 2.0}))


def write_network(path, node, *shapes):
    """An ONNX file of one node with inputs of these shapes."""
    kind = TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info(f"input{i}", kind, shape)
        for i, shape in enumerate(shapes)
    ]
    output = helper.make_tensor_value_info("features", kind, None)
    graph = helper.make_graph([node], "other", inputs, [output])
    opset = [helper.make_opsetid("", 13)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return BackboneConfig(backbone=str(path))


@pytest.mark.parametrize(
    ("shape", "axes", "words"),
    [
        ([64, 32], [1, 2], "cannot be run on RGB images of side 32"),
        ([32, 32], [0, 1, 2, 3], r"gives the shape \(\)"),
    ],
)
def test_images_that_are_not_square_and_a_lone_number_are_refused(
    tmp_path, shape, axes, words
):
    names = ["input0"], ["features"]
    node = helper.make_node("ReduceMean", *names, axes=axes, keepdims=0)
    config = write_network(tmp_path / "means.onnx", node, ["N", *shape, 3])
    with pytest.raises(VdError, match=words):
        engines.OnnxEngine(find_backbone(config))


@pytest.mark.parametrize(
    "shapes", [[["N", 1, 32, 32]], [["N", 10]], [[]], [["N", 32, 32, 3]] * 2]
)
def test_the_error_for_other_inputs_names_what_a_network_must_take(tmp_path, shapes):
    node = helper.make_node("Identity", ["input0"], ["features"])
    config = write_network(tmp_path / "other.onnx", node, *shapes)
    with pytest.raises(VdError, match=r"export it with one input, float or uint8"):
        find_backbone(config)
