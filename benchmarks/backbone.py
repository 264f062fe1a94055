"""Images a second through EfficientNet-Lite0: vd's engine against other runtimes.

    pip install '.[bench]' && python -m benchmarks.backbone

`ours` is the engine as extraction calls it, a clip's images at a time. The peers run the
same network with the same parameters on the same images with as many cores, each at the
best of its batch sizes (chosen in a first round, that is not counted):

- onnxruntime: a bare session on the same graph
- openvino: the same graph
- torch, torch_channels_last: the same convolutions, folded as they are here
- float32: here `ours` is the 8-bit network, theirs the float one

Where JAX has a GPU, `ours` is the network in JAX, float32, and the peers are torch with cuDNN
there, channels last: torch_float32 (with TF32, cuDNN's default) and torch_bfloat16.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np
import tyro

from vd.config import BackboneConfig, usable_cores
from vd.features.backbone import find_backbone
from vd.features.efficientnet import (
    MEAN,
    SCALE,
    Conv,
    architecture,
    folded_parameters,
)
from vd.features.efficientnet_onnx import onnx_model
from vd.features.engines import OnnxEngine, make_engine
from vd.features.network import built_in_network

Run = Callable[[np.ndarray], np.ndarray]

NAME = "efficientnet-lite0"
BATCHES, GPU_BATCHES = (1, 2, 4, 8, 16), (64, 128, 256)
CLIP = 34  # images: 2 s at 8 frames a second, RGB and motion


def onnxruntime_peer() -> Run:
    """A bare session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(
        onnx_model(built_in_network(NAME)).SerializeToString(),
        options,
        ["CPUExecutionProvider"],
    )
    return lambda images: session.run(None, {"images": images})[0]


def openvino_peer() -> Run:
    """OpenVINO, in float32 as all others."""
    import openvino

    core = openvino.Core()
    model = core.read_model(onnx_model(built_in_network(NAME)).SerializeToString(), b"")
    settings = {
        "INFERENCE_NUM_THREADS": usable_cores(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", settings)
    return lambda images: compiled(images)[0]


def torch_peer(
    channels_last: bool, device: str = "cpu", precision: str = "float32"
) -> Run:
    """The architecture table as a torch module."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(usable_cores())
    kind = torch.channels_last if channels_last else torch.contiguous_format
    torch.backends.cudnn.benchmark = True
    dtype = getattr(torch, precision)
    tensors = {
        name: torch.from_numpy(value).to(device, dtype)
        for name, value in folded_parameters(NAME).items()
    }
    for name, tensor in tensors.items():
        if tensor.ndim == 4:
            tensors[name] = tensor.contiguous(memory_format=kind)

    def convolve(x: "torch.Tensor", conv: Conv) -> "torch.Tensor":
        size = x.shape[-1]
        total = max((-(-size // conv.stride) - 1) * conv.stride + conv.kernel - size, 0)
        if total % 2:  # TensorFlow's SAME: the odd pixel at the end
            x, padding = functional.pad(x, [total // 2, total - total // 2] * 2), 0
        else:
            padding = total // 2
        x = functional.conv2d(
            x, tensors[f"{conv.name}.kernel"], tensors[f"{conv.name}.bias"], conv.stride,
            padding, 1, conv.groups,
        )  # fmt: skip
        return functional.relu6(x, inplace=True) if conv.relu6 else x

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        x = (x.to(torch.float32) - MEAN) / SCALE
        x = x.to(dtype).contiguous(memory_format=kind)
        for block in architecture(NAME):
            shortcut = x
            for conv in block.convs:
                x = convolve(x, conv)
            x = x + shortcut if block.residual else x
        return x.to(torch.float32).mean((2, 3)).cpu().numpy()

    return run


def batched(run: Run, batch: int) -> Run:
    """`run`, a batch at a time."""
    return lambda images: np.concatenate(
        [run(images[i : i + batch]) for i in range(0, len(images), batch)]
    )


def seconds(run: Run, images: np.ndarray) -> float:
    """Time of one call."""
    began = time.perf_counter()
    run(images)
    return time.perf_counter() - began


def main(repeats: int = 9, images: int = 6 * CLIP) -> None:
    """A JSON line a peer; medians of interleaved repeats."""
    os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    backbone = find_backbone(BackboneConfig())
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (images, backbone.size, backbone.size, 3))
    pictures = pictures.astype(np.uint8)
    engine = make_engine(backbone, "auto")
    on_gpu = engine.name == "jax"
    peers = {
        "torch_float32": torch_peer(True, "cuda"),
        "torch_bfloat16": torch_peer(True, "cuda", "bfloat16"),
    } if on_gpu else {
        "onnxruntime": onnxruntime_peer(),
        "openvino": openvino_peer(),
        "torch": torch_peer(channels_last=False),
        "torch_channels_last": torch_peer(channels_last=True),
    }  # fmt: skip
    runs: dict[str, Run] = {"ours": batched(engine, CLIP)}
    if on_gpu:
        runs["ours"] = engine  # takes all images in batches of its own
    else:
        int8 = find_backbone(BackboneConfig(backbone=f"{NAME}-int8"))
        runs["int8"] = batched(OnnxEngine(int8), CLIP)
    best = best_batches(peers, GPU_BATCHES if on_gpu else BATCHES, pictures)
    if not on_gpu:
        for run in peers.values():
            np.testing.assert_allclose(
                run(pictures[:8]), engine(pictures[:8]), atol=1e-3
            )
    runs |= {name: batched(run, best[name]) for name, run in peers.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, pictures))
    rates = {name: images / median(taken) for name, taken in times.items()}
    pairs = [(name, rates["ours"], rates[name]) for name in peers]
    if "int8" in rates:
        pairs.append(("float32", rates["int8"], rates["ours"]))
    for name, mine, theirs in pairs:
        line = {
            "benchmark": "backbone",
            "peer": name,
            "unit": "images/s",
            "ours": round(mine, 1),
            "theirs": round(theirs, 1),
            "ratio": round(mine / theirs, 3),
            "batch": best.get(name),
        }
        print(json.dumps(line), flush=True)


def best_batches(
    peers: Mapping[str, Run], sizes: Sequence[int], pictures: np.ndarray
) -> dict[str, int]:
    """The batch size at which each peer is fastest."""
    best = {}
    few = pictures[: max(sizes[-1], 64)]
    for name, run in peers.items():
        taken = {
            size: min(seconds(batched(run, size), few) for _ in range(3))
            for size in sizes
        }
        best[name] = min(taken, key=taken.__getitem__)
    return best


if __name__ == "__main__":
    tyro.cli(main)
