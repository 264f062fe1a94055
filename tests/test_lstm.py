"""The LSTM against a plain loop, its gradient against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vd.models.lstm import BidirectionalLSTM, lstm, product

T, B, H = 6, 3, 4


def _inputs(seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(B, T, 8 * H)).astype(np.float32)
    recurrent = 0.5 * rng.normal(size=(2, H, 4 * H)).astype(np.float32)
    mask = np.ones((B, T), np.float32)
    mask[1, 4:] = 0.0
    return inputs, mask, recurrent


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain_lstm(inputs, lengths, recurrent):
    """Each clip and direction alone, a Python loop over its real frames."""
    outputs = np.zeros((B, T, 2 * H))
    for b, length in enumerate(lengths):
        for d, times in enumerate((range(length), reversed(range(length)))):
            h = c = np.zeros(H)
            for t in times:
                x = inputs[b, t, 4 * H * d : 4 * H * (d + 1)]
                i, f, g, o = np.split(x + h @ recurrent[d], 4)
                c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
                h = _sigmoid(o) * np.tanh(c)
                outputs[b, t, H * d : H * (d + 1)] = h
    return outputs


def test_equals_a_plain_loop_and_ignores_padding():
    inputs, mask, recurrent = _inputs()
    expected = plain_lstm(inputs, [T, 4, T], recurrent)
    np.testing.assert_allclose(lstm(inputs, mask, recurrent), expected, atol=1e-6)


def autodiff_lstm(inputs, mask, recurrent):
    """The same recurrence left to JAX's own differentiation."""
    outputs = []
    for d, times in enumerate((range(T), reversed(range(T)))):
        h = c = jnp.zeros((B, H))
        by_time = {}
        for t in times:
            gates = inputs[:, t, 4 * H * d : 4 * H * (d + 1)] + h @ recurrent[d]
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            m = mask[:, t, None]
            c = m * (jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g))
            h = m * jax.nn.sigmoid(o) * jnp.tanh(c)
            by_time[t] = h
        outputs.append(jnp.stack([by_time[t] for t in range(T)], axis=1))
    return jnp.concatenate(outputs, axis=-1)


@pytest.mark.parametrize("shift", [0, -16])  # −16: all gates shut, the cell's at −1
def test_gradient_equals_autodiff_with_holes_and_an_empty_clip_too(shift):
    inputs, mask, recurrent = _inputs(1)
    mask[0, 2], mask[2] = 0.0, 0.0
    weights = np.random.default_rng(2).normal(size=(B, T, 2 * H)).astype(np.float32)

    def gradient(function):
        def loss(x, w):
            return jnp.sum(weights * function(x, mask, w))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(inputs + shift, recurrent)

    for our, their in zip(gradient(lstm), gradient(autodiff_lstm), strict=True):
        assert np.any(their)
        atol = 0 if shift else 2e-6
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (20, 4)])
def test_a_dense_layers_gradient_equals_autodiff(rows, columns):
    rng = np.random.default_rng(6)
    x = rng.normal(size=(2, 5, rows)).astype(np.float32)
    weight = rng.normal(size=(rows, columns)).astype(np.float32)
    weights = rng.normal(size=(2, 5, columns)).astype(np.float32)

    def loss(function):
        return lambda x, w: jnp.sum(weights * function(x, w))

    ours = jax.grad(loss(product), argnums=(0, 1))(x, weight)
    theirs = jax.grad(loss(jnp.matmul), argnums=(0, 1))(x, weight)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_backward_direction_reads_a_padded_clip_from_its_last_frame(dtype):
    rng = np.random.default_rng(4)
    clip = rng.normal(size=(1, 4, 5)).astype(np.float32)
    padded = np.concatenate(
        [clip, rng.normal(size=(1, 3, 5)).astype(np.float32)], axis=1
    )
    module = BidirectionalLSTM(H, dtype)
    variables = module.init(jax.random.key(0), clip, np.ones((1, 4), np.float32))
    alone = module.apply(variables, clip, np.ones((1, 4), np.float32))
    mask = np.array([[1.0] * 4 + [0.0] * 3], np.float32)
    with_padding = module.apply(variables, padded, mask)
    np.testing.assert_allclose(with_padding[:, :4], alone, atol=1e-6)
    assert not np.any(with_padding[:, 4:])
