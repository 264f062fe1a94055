"""The detector and its training step as one would write them with torch, Flax, cuDNN.

All take vd's parameters, so that all peers of `benchmarks.train_step` are one model.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax.experimental import rnn
from torch.nn import functional

from vd.config import Config, ModelConfig, usable_cores
from vd.models.detector import Detector, DropoutMasks
from vd.models.head import apply
from vd.models.losses import clip_losses
from vd.training.optimizer import learning_rates, make_optimizer

Step = Callable[[], Any]  # one step; returns what shows that it is done
STEPS_PER_EPOCH = 341
DIRECTIONS = "forward", "backward"
TOLERANCE = 1e-4 if not torch.cuda.is_available() else 1e-2  # TF32 products on a GPU
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def flax_step(
    config: Config,
    params: Any,
    features: Any,
    labels: np.ndarray,
    detector: "type[FlaxDetector] | None" = None,
) -> Step:
    """A jitted step of the Flax model, around Flax's LSTM or another."""
    model = (detector or FlaxDetector)(config.model)
    params = model.take(params)
    rates: Any = jnp.asarray(learning_rates(config.training, STEPS_PER_EPOCH))
    moments = make_optimizer(config.training).init(params)

    def step(state: Any, features: Any, labels: Any) -> Any:
        number, params, moments = state
        key = jax.random.fold_in(jax.random.key(0), number)
        keys = jax.random.split(key, len(labels))
        dropout = jax.vmap(Detector(config.model).draw_dropout)(keys)

        def loss(params: Any) -> Any:
            logits: Any = model.apply({"params": params}, features, dropout)
            return clip_losses(None, logits, labels, config.training).mean()

        value, grads = jax.value_and_grad(loss)(params)
        settings = replace(config.training, learning_rate=rates[number])
        updates, moments = make_optimizer(settings).update(grads, moments, params)
        return (number + 1, optax.apply_updates(params, updates), moments), value

    compiled = jax.jit(step, donate_argnums=0)
    state = (np.int32(0), params, moments)

    def run() -> Any:
        nonlocal state
        state, value = compiled(state, features, labels)
        return state, value

    return run


class FlaxDetector(nn.Module):
    """vd's detector around `nn.Bidirectional`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, features: Any, dropout: DropoutMasks | None = None) -> Any:
        """Float16 features to logits."""
        x: Any = features.astype(jnp.float32)
        hidden = self.config.hidden_size
        if self.config.projection_size:
            x = nn.Dense(self.config.projection_size, name="projection")(x)
            x = x if dropout is None else x * dropout.projected_BxP[:, None]
        x = self.recur(x)
        score = nn.Dense(hidden, name="attention_hidden")(x)
        score = nn.Dense(1, name="attention")(jnp.tanh(score))
        pooled = jnp.sum(jax.nn.softmax(score, axis=1) * x, axis=1)
        pooled = pooled if dropout is None else pooled * dropout.pooled_Bx2H
        return nn.Dense(1, name="logit")(pooled)[:, 0]

    def recur(self, x: Any) -> Any:
        """Outputs of both directions, side by side."""
        forward, backward = (
            nn.RNN(nn.OptimizedLSTMCell(self.config.hidden_size, name=name))
            for name in DIRECTIONS
        )
        return nn.Bidirectional(forward, backward)(x)

    @staticmethod
    def take(params: Any) -> Any:
        """vd's parameters as this module names them."""
        return flax_params(params)


class CudnnDetector(FlaxDetector):
    """vd's detector around cuDNN's LSTM."""

    def recur(self, x: Any) -> Any:
        """Outputs of both directions, side by side; all weights are one vector."""
        batch, frames, inputs = x.shape
        hidden = self.config.hidden_size
        count = rnn.get_num_params_in_lstm(inputs, hidden, 1, True)
        weights = self.param("lstm", nn.initializers.normal(), (count,))
        zeros = jnp.zeros((2, batch, hidden))
        lengths = jnp.full(batch, frames, jnp.int32)
        return rnn.lstm(
            x, zeros, zeros, weights, lengths, inputs, hidden, 1, 0.0, True
        )[0]

    @staticmethod
    def take(params: Any) -> Any:
        """vd's parameters, the LSTM's in cuDNN's order; its second bias is 0."""
        lstm = params["lstm"]
        kernels = np.split(np.asarray(lstm["input"]["kernel"]), 2, axis=1)
        biases = np.split(np.asarray(lstm["input"]["bias"]), 2)
        parts = []
        for kernel, recurrent in zip(kernels, lstm["recurrent"], strict=True):
            parts += [kernel.T.ravel(), np.asarray(recurrent).T.ravel()]
        for bias in biases:
            parts += [bias, 0 * bias]
        return {**params, "lstm": np.concatenate(parts)}


def torch_step(
    config: Config, params: Any, x: torch.Tensor, labels: np.ndarray
) -> Step:
    """A step of the torch model on all cores, or on the GPU."""
    torch.set_num_threads(usable_cores())
    model = TorchDetector(config.model, params, x.shape[-1]).to(DEVICE)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    settings = config.training
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        fused=True,
    )
    y = torch.from_numpy(labels).to(DEVICE)
    if DEVICE.type != x.device.type:
        x = x.pin_memory()
    targets = y * (1 - settings.label_smoothing) + settings.label_smoothing / 2

    def run() -> Any:
        optimizer.zero_grad()
        logits = model(x.to(DEVICE, non_blocking=True))
        cross = functional.binary_cross_entropy_with_logits(
            logits, targets, reduction="none"
        )
        p = torch.sigmoid(logits)
        hit = p * targets + (1 - p) * (1 - targets)
        weight = settings.focal_alpha * targets
        weight = weight + (1 - settings.focal_alpha) * (1 - targets)
        loss = (weight * (1 - hit) ** settings.focal_gamma * cross).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip_norm)
        optimizer.step()
        return loss

    return run


class TorchDetector(torch.nn.Module):
    """vd's detector around `torch.nn.LSTM`."""

    def __init__(self, config: ModelConfig, params: Any, dim: int) -> None:
        super().__init__()
        size, hidden = config.projection_size, config.hidden_size
        self.rate = config.dropout_rate
        self.projection = linear(params["projection"]) if size else None
        self.lstm = torch.nn.LSTM(
            size or dim, hidden, batch_first=True, bidirectional=True
        )
        inputs = params["lstm"]["input"]
        kernel, bias = inputs["kernel"], inputs["bias"]
        for d, suffix in enumerate(("l0", "l0_reverse")):
            part = slice(4 * hidden * d, 4 * hidden * (d + 1))
            fill(self.lstm, f"weight_ih_{suffix}", kernel[:, part].T)
            fill(self.lstm, f"weight_hh_{suffix}", params["lstm"]["recurrent"][d].T)
            fill(self.lstm, f"bias_ih_{suffix}", bias[part])
            fill(self.lstm, f"bias_hh_{suffix}", 0 * bias[part])
        self.attention_hidden = linear(params["attention_hidden"])
        self.attention = linear(params["attention"])
        self.logit = linear(params["logit"])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Float16 features to logits; dropout in training mode."""
        x = features.float()
        if self.projection is not None:
            x = self.projection(x)
            ones = torch.ones(len(x), 1, x.shape[-1], device=x.device)
            x = x * functional.dropout(ones, self.rate, self.training)
        x, _ = self.lstm(x)
        score = self.attention(torch.tanh(self.attention_hidden(x)))
        pooled = (torch.softmax(score, 1) * x).sum(1)
        pooled = functional.dropout(pooled, self.rate, self.training)
        return self.logit(pooled)[:, 0]


class TorchProcess:
    """What `make` makes, `torch_runs` with its arguments, in a process of its own."""

    def __init__(self, make: Callable[[], dict[str, Step]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _start, (make,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def timed(self, name: str, steps: int) -> float:
        """Milliseconds a step, of so many in a row."""
        return self._pool.submit(_timed_there, name, steps).result()


_runs: dict[str, Step] = {}  # in that process


def _start(make: Callable[[], dict[str, Step]]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _runs.update(make())


def torch_runs(
    config: Config,
    params: Any,
    features: np.ndarray,
    labels: np.ndarray,
    factors: Sequence[np.ndarray],
    on_gpu: bool,
) -> dict[str, Step]:
    """Torch's step and its product of the factors."""
    x = torch.from_numpy(features).to(DEVICE if on_gpu else "cpu")
    a, b = (torch.from_numpy(factor).to(DEVICE) for factor in factors)
    return {"step": torch_step(config, params, x, labels), "product": lambda: a @ b}


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _timed_there(name: str, steps: int) -> float:
    return timed(_runs[name], steps)


def timed(run: Step, steps: int) -> float:
    """Milliseconds a step, of so many in a row, until the work of the last has ended."""
    began = time.perf_counter()
    for _ in range(steps):
        done = run()
    if isinstance(done, torch.Tensor) and DEVICE.type == "cuda":
        torch.cuda.synchronize()
    jax.block_until_ready(done)
    return 1000 * (time.perf_counter() - began) / steps


def check(
    config: Config,
    params: Any,
    features: np.ndarray,
    detectors: Sequence[type[FlaxDetector]],
) -> None:
    """Raise unless all peers give vd's logits."""
    mask = np.ones(features.shape[:2], np.float32)
    expected = np.asarray(apply(Detector(config.model), params, features, mask))
    for detector in detectors:
        model = detector(config.model)
        logits: Any = model.apply({"params": model.take(params)}, features)
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
    network = TorchDetector(config.model, params, features.shape[-1]).eval().to(DEVICE)
    with torch.inference_mode():
        theirs = network(torch.from_numpy(features).to(DEVICE)).cpu().numpy()
    np.testing.assert_allclose(theirs, expected, atol=TOLERANCE)


def flax_params(params: Any) -> Any:
    """vd's parameters as `FlaxDetector` names them."""
    lstm = params["lstm"]
    hidden = lstm["recurrent"].shape[1]
    kernel, bias = lstm["input"]["kernel"], lstm["input"]["bias"]
    made = {name: value for name, value in params.items() if name != "lstm"}
    for d, direction in enumerate(DIRECTIONS):
        cell = {}
        for number, gate in enumerate("ifgo"):
            at = slice((4 * d + number) * hidden, (4 * d + number + 1) * hidden)
            own = slice(number * hidden, (number + 1) * hidden)
            cell[f"i{gate}"] = {"kernel": kernel[:, at]}
            cell[f"h{gate}"] = {
                "kernel": lstm["recurrent"][d][:, own],
                "bias": bias[at],
            }
        made[direction] = cell
    return made


def linear(params: Any) -> torch.nn.Linear:
    """A Flax layer's parameters as a torch layer."""
    made = torch.nn.Linear(*params["kernel"].shape)
    fill(made, "weight", params["kernel"].T)
    fill(made, "bias", params["bias"])
    return made


def fill(module: torch.nn.Module, name: str, value: np.ndarray) -> None:
    """Put numbers into a torch parameter."""
    with torch.no_grad():
        getattr(module, name).copy_(torch.from_numpy(np.array(value)))
