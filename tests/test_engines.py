"""Engines: both forms of the backbone agree, whatever the batch."""

import numpy as np
import pytest

from vd.config import BackboneConfig
from vd.errors import VdError
from vd.features import engines
from vd.features.engines import find_backbone, make_engine


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


def test_threads_and_company_change_no_bit(backbone, images):
    one, two = (
        engines.OnnxEngine(backbone, threads=1),
        engines.OnnxEngine(backbone, threads=2),
    )
    together = two(images)
    np.testing.assert_array_equal(one(images), together)
    for i in range(5):
        np.testing.assert_array_equal(one(images[i : i + 1])[0], together[i])
    assert two(images[:0]).shape == (0, 1280)


def test_a_run_by_another_engine_is_said(backbone, capsys):
    assert make_engine(backbone, "auto", before="onnxruntime").name == "onnxruntime"
    assert capsys.readouterr().err == ""
    assert make_engine(backbone, "auto", before="jax").name == "onnxruntime"
    assert "those of the run are by jax" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone": "resnet50"}, "neither a file nor one of"),
        ({"backbone_size": 99}, "--backbone-size goes with an ONNX file"),
        ({"backbone": __file__}, "no ONNX file"),
    ],
)
def test_wrong_backbones_are_one_sentence(settings, words):
    with pytest.raises(VdError, match=words):
        find_backbone(BackboneConfig(**settings))
