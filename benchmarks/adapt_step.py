"""Seconds a step of fine-tuning the backbone's upper blocks: JAX on a CPU against torch.

    pip install '.[bench]' && python -m benchmarks.adapt_step

48 images of 160 × 160, eight clips of six frames: blocks 0 to 4 without gradient, blocks 5 to
15 and the head's convolution with it, the mean over a clip's frames, a linear read-out,
cross-entropy, the gradient of everything trained. torch has all cores and channels last; JAX
has one device a core under `pmap`. Both give the same loss and gradients (checked). XLA's
grouped convolution is ten times too slow on a CPU; the one of `vd.features.efficientnet_jax` is a sum of shifted products
with a gradient of its own. Medians of interleaved repeats.
"""

import json
import os
import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from vd.config import usable_cores
from vd.features.efficientnet import (
    MEAN,
    SCALE,
    Block,
    Conv,
    Parameters,
    architecture,
    folded_parameters,
)
from vd.features.efficientnet_jax import image_features, jax_parameters, same_padding

NAME = "efficientnet-lite0"
CLIPS, FRAMES, SIDE = 8, 6, 160
TRAINED_FROM = 6  # of the architecture's blocks, where the stem is number 0

Params = dict[str, Any]


def split_parameters(params: Params) -> tuple[Params, Params]:
    """Those without gradient, those with it; the read-out comes with the latter."""
    names = {
        conv.name for block in architecture(NAME)[:TRAINED_FROM] for conv in block.convs
    }
    fixed = {k: v for k, v in params.items() if k.split(".")[0] in names}
    return fixed, {k: v for k, v in params.items() if k not in fixed}


def jax_step(params: Params, devices: int) -> Callable[..., Any]:
    """Loss and gradients, means over the devices, of images and labels split over them."""
    fixed, _ = split_parameters(params)

    def loss_fn(trained: Params, images: Any, labels: Any) -> Any:
        network = {**fixed, **trained}
        features = image_features(NAME, network, images, TRAINED_FROM)
        clips = features.reshape(-1, FRAMES, features.shape[-1]).mean(axis=1)
        logits = clips @ trained["readout"]
        return jnp.mean(jnp.logaddexp(0.0, logits) - labels * logits)

    def step(trained: Params, images: Any, labels: Any) -> Any:
        return jax.lax.pmean(
            jax.value_and_grad(loss_fn)(trained, images, labels), "devices"
        )

    return jax.pmap(
        step, "devices", in_axes=(None, 0, 0), out_axes=None,
        devices=jax.local_devices()[:devices],
    )  # fmt: skip


def torch_step(parameters: Parameters, readout: np.ndarray) -> Callable[..., Any]:
    """The same by torch: loss and gradients by name."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(usable_cores())
    kind = torch.channels_last
    values = {**parameters, "readout": readout}
    tensors = {name: torch.from_numpy(value.copy()) for name, value in values.items()}
    trained = split_parameters(values)[1]
    for name, tensor in tensors.items():
        if tensor.ndim == 4:
            tensors[name] = tensor.contiguous(memory_format=kind)
        tensors[name].requires_grad_(name in trained)

    def conv2d(x: Any, conv: Conv) -> Any:
        low, high = same_padding(x.shape[-1], conv.kernel, conv.stride)
        if low != high:
            x, low = functional.pad(x, [low, high] * 2), 0
        x = functional.conv2d(
            x, tensors[f"{conv.name}.kernel"], tensors[f"{conv.name}.bias"],
            conv.stride, low, 1, conv.groups,
        )  # fmt: skip
        return functional.relu6(x) if conv.relu6 else x

    def blocks(x: Any, which: list[Block]) -> Any:
        for block in which:
            shortcut = x
            for conv in block.convs:
                x = conv2d(x, conv)
            x = x + shortcut if block.residual else x
        return x

    def step(images: np.ndarray, labels: np.ndarray) -> tuple[float, dict[str, Any]]:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        x = ((x - MEAN) / SCALE).contiguous(memory_format=kind)
        with torch.no_grad():
            x = blocks(x, architecture(NAME)[:TRAINED_FROM])
        x = blocks(x, architecture(NAME)[TRAINED_FROM:]).mean((2, 3))
        clips = x.reshape(-1, FRAMES, x.shape[-1]).mean(1)
        logits = clips @ tensors["readout"]
        loss = functional.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(labels)
        )
        for name in trained:
            tensors[name].grad = None
        loss.backward()
        return loss.item(), {name: tensors[name].grad for name in trained}

    return step


def main(repeats: int = 9) -> None:
    """A JSON line; `ours` and `theirs` are medians of seconds a step."""
    devices = usable_cores()
    os.environ["OMP_NUM_THREADS"] = str(devices)
    jax.config.update("jax_num_cpu_devices", devices)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (CLIPS * FRAMES, SIDE, SIDE, 3)).astype(np.uint8)
    labels = np.arange(CLIPS, dtype=np.float32) % 2
    parameters = folded_parameters(NAME)
    readout = draw.normal(0, 0.02, 1280).astype(np.float32)
    params = {**jax_parameters(parameters), "readout": readout}
    trained = split_parameters(params)[1]
    ours, theirs = jax_step(params, devices), torch_step(parameters, readout)
    parts = (
        images.reshape(devices, -1, *images.shape[1:]),
        labels.reshape(devices, -1),
    )
    loss, grads = jax.block_until_ready(ours(trained, *parts))
    peer_loss, peer_grads = theirs(images, labels)
    np.testing.assert_allclose(float(loss), peer_loss, rtol=1e-4)
    in_torch = jax_parameters(
        {k: v.numpy() for k, v in peer_grads.items()}
        | {k: v for k, v in parameters.items() if k not in peer_grads}
    )
    for name, grad in grads.items():
        expected = (
            peer_grads["readout"].numpy() if name == "readout" else in_torch[name]
        )
        # one rounding may take a unit to the other side of ReLU6's corner
        distance = np.linalg.norm(np.asarray(grad) - expected)
        assert distance < 1e-2 * np.linalg.norm(expected), name
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for name, run in (
            ("ours", lambda: jax.block_until_ready(ours(trained, *parts))),
            ("theirs", lambda: theirs(images, labels)),
        ):
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    mine, other = median(times["ours"]), median(times["theirs"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    line = {
        "benchmark": "adapt_step",
        "peer": "torch_channels_last",
        "unit": "s/step",
        "ours": round(mine, 3),
        "theirs": round(other, 3),
        "ratio": round(other / mine, 3),
        "ours_best": round(min(times["ours"]), 3),
        "theirs_best": round(min(times["theirs"]), 3),
        "peak_gb_of_both": round(peak, 2),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
