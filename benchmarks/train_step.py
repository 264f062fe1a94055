"""Milliseconds a training step: vd's against torch, Flax's LSTM, cuDNN's and the floor.

    pip install '.[bench]' && python -m benchmarks.train_step

Batches of 64 clips × 32 frames × 2560 values, float16 as they are stored, on the host or,
by `--on-gpu`, for all peers on the GPU already, where training has them; hidden size 128,
float32. A step is all of it: conversion, dropout, focal loss, gradient, clipping, AdamW.
Two shapes: `default` projects the features to 256 first, `direct` does not. Every peer has
all cores, or the first GPU where there is one, gives the same logits for the same
parameters (checked) and trains on the same batch; torch in a process of its own, since vd
sets how its process keeps memory:

- torch: nn.LSTM, fused AdamW
- flax: nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell)) under jit
- cudnn: the same around cuDNN's LSTM, jax.experimental.rnn.lstm; on a GPU alone
- bfloat16: vd's step in that; on a GPU alone
- floor: the step's matrix products alone, at the rate of the faster of torch's and XLA's
  products of 2048 × 2560 × 1024 in the same rounds

Medians over rounds in which all take turns; `ours_best` and `theirs_best` are the fastest
rounds, which other work on the machine disturbs least.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.train_step_peers import (
    STEPS_PER_EPOCH,
    CudnnDetector,
    FlaxDetector,
    Step,
    TorchProcess,
    check,
    flax_step,
    timed,
    torch_runs,
)
from vd.config import Config, DataConfig, ModelConfig
from vd.devices import training_devices
from vd.models.detector import Detector
from vd.models.head import init_params
from vd.training.feature_set import host_array
from vd.training.optimizer import learning_rates, make_optimizer
from vd.training.step import Batch, TrainState, make_train_step, step_numbers

BATCH, FRAMES, DIM = 64, 32, 2560
ROWS = BATCH * FRAMES
SHAPES = {"default": 256, "direct": 0}
PRODUCT = (ROWS, DIM, 1024)
PRODUCTS = "torch_product", "xla_product"

Timer = Callable[[int], float]  # milliseconds a step, of so many in a row


def main(
    rounds: int = 15,
    steps: int = 4,
    devices: int | None = None,
    shapes: tuple[Literal["default", "direct"], ...] = ("default", "direct"),
    on_gpu: bool = False,
) -> None:
    """A JSON line a shape and peer; each round takes `steps` steps of each."""
    asked = 1 if devices is None else devices
    if min(rounds, steps, asked, len(shapes)) < 1 or BATCH % asked:
        sys.exit(
            f"--rounds, --steps, --shapes: at least one; --devices: a divisor of {BATCH}"
        )
    ours = training_devices(devices, BATCH)
    gpu = ours[0].platform == "gpu"
    if on_gpu and not gpu:
        sys.exit("--on-gpu needs a GPU, and JAX finds none here")
    draw = np.random.default_rng(0)
    features = host_array((BATCH, FRAMES, DIM))
    features[:] = draw.normal(size=features.shape)
    labels = (np.arange(BATCH) % 2).astype(np.float32)
    given = jax.device_put(features, ours[0]) if on_gpu else features
    factors = [
        draw.normal(size=size).astype(np.float32) for size in (PRODUCT[:2], PRODUCT[1:])
    ]
    for shape in shapes:
        model = ModelConfig(projection_size=SHAPES[shape], mixed_precision=False)
        config = Config(DataConfig(Path()), model=model)
        params = jax.device_get(init_params(Detector(model), DIM, jax.random.key(0)))
        detectors = [FlaxDetector, CudnnDetector][: 1 + gpu]
        check(config, params, features[:8], detectors)
        runs = {
            "ours": our_step(config, params, given, labels, ours),
            "flax": flax_step(config, params, given, labels),
            "xla_product": xla_product(*factors),
        }
        if gpu:
            half = replace(config, model=replace(model, mixed_precision=True))
            runs["cudnn"] = flax_step(config, params, given, labels, CudnnDetector)
            runs["bfloat16"] = our_step(half, params, given, labels, ours)
        timers: dict[str, Timer] = {
            name: partial(timed, run) for name, run in runs.items()
        }
        make = partial(torch_runs, config, params, features, labels, factors, on_gpu)
        with TorchProcess(make) as torch:
            timers["torch"] = partial(torch.timed, "step")
            timers["torch_product"] = partial(torch.timed, "product")
            times = interleaved(timers, rounds, steps)
        fastest = min(PRODUCTS, key=lambda name: median(times[name]))
        share = flops(config) / (2 * np.prod(PRODUCT))
        times["floor"] = [share * taken for taken in times[fastest]]
        for peer in ("torch", "flax", "cudnn", "bfloat16", "floor"):
            if peer in times:
                line(shape, peer, times["ours"], times[peer])


def our_step(
    config: Config, params: Any, features: Any, labels: np.ndarray, devices: Any
) -> Step:
    """The step as the training loop calls it."""
    rates = learning_rates(config.training, STEPS_PER_EPOCH)
    step, numbers = make_train_step(config, devices), step_numbers(config, devices)
    opt_state = make_optimizer(config.training).init(params)
    state = TrainState(jnp.zeros((), jnp.int32), params, opt_state)
    done = count()
    mask = np.ones((BATCH, FRAMES), np.float32)
    arrays = features, mask, labels, np.arange(BATCH)
    batch = Batch(*(a.reshape(len(devices), -1, *a.shape[1:]) for a in arrays))

    def run() -> Any:
        nonlocal state
        rate = rates[next(done)]
        state, metrics = step(state, batch, numbers._replace(learning_rate=rate))
        return state, metrics

    return run


def xla_product(a: np.ndarray, b: np.ndarray) -> Step:
    """One large matrix product on all cores."""
    jax_a, jax_b = jnp.asarray(a), jnp.asarray(b)
    product = jax.jit(jnp.matmul)
    return lambda: product(jax_a, jax_b)


def flops(config: Config) -> int:
    """Of the step's matrix products, forward and backward; the features need no gradient."""
    size, hidden = config.model.projection_size, config.model.hidden_size
    attention = 3 * 2 * hidden * hidden
    recurrent = 3 * 2 * hidden * 4 * hidden
    direct = 2 * DIM * 8 * hidden
    inputs = 2 * DIM * size + 3 * size * 8 * hidden if size else direct
    return 2 * ROWS * (inputs + recurrent + attention)


def interleaved(
    timers: dict[str, Timer], rounds: int, steps: int
) -> dict[str, list[float]]:
    """Milliseconds a step in each round; two before, which compile, are not counted."""
    times: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(rounds + 2):  # the second step compiles for donated arrays
        for name, timer in timers.items():
            taken = timer(steps)
            if number > 1:
                times[name].append(taken)
    return times


def line(shape: str, peer: str, ours: list[float], theirs: list[float]) -> None:
    """Print a line; less is better, so the ratio is theirs to ours."""
    values = {
        "benchmark": "train_step",
        "shape": shape,
        "peer": peer,
        "unit": "ms/step",
        "ours": round(median(ours), 1),
        "theirs": round(median(theirs), 1),
        "ratio": round(median(theirs) / median(ours), 3),
        "ours_best": round(min(ours), 1),
        "theirs_best": round(min(theirs), 1),
        "ratio_best": round(min(theirs) / min(ours), 3),
    }
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
