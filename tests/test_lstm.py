"""The LSTM against a plain loop, its gradient against autodiff and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vd.lstm import BidirectionalLSTM, lstm

T, B, H = 6, 3, 4


def _inputs(seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(T, B, 4 * H)).astype(np.float32)
    recurrent = 0.5 * rng.normal(size=(H, 4 * H)).astype(np.float32)
    mask = np.ones((T, B, 1), np.float32)
    mask[4:, 1] = 0.0
    return inputs, mask, recurrent


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain_lstm(inputs, lengths, recurrent):
    """Each clip alone, a Python loop over its real frames."""
    outputs = np.zeros((*inputs.shape[:2], recurrent.shape[0]))
    for b, length in enumerate(lengths):
        h = c = np.zeros(recurrent.shape[0])
        for t in range(length):
            i, f, g, o = np.split(inputs[t, b] + h @ recurrent, 4)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
            outputs[t, b] = h
    return outputs


def test_equals_a_plain_loop_and_ignores_padding():
    inputs, mask, recurrent = _inputs()
    expected = plain_lstm(inputs, [T, 4, T], recurrent)
    np.testing.assert_allclose(lstm(inputs, mask, recurrent), expected, atol=1e-6)


def autodiff_lstm(inputs, mask, recurrent):
    """The same recurrence left to JAX's own differentiation."""
    h = c = jnp.zeros((B, H))
    outputs = []
    for t in range(T):
        i, f, g, o = jnp.split(inputs[t] + h @ recurrent, 4, axis=-1)
        c = mask[t] * (jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g))
        h = mask[t] * jax.nn.sigmoid(o) * jnp.tanh(c)
        outputs.append(h)
    return jnp.stack(outputs)


def test_gradient_equals_autodiff():
    inputs, mask, recurrent = _inputs(1)
    weights = np.random.default_rng(2).normal(size=(T, B, H)).astype(np.float32)

    def loss(function):
        return lambda x, w: jnp.sum(weights * function(x, mask, w))

    ours = jax.grad(loss(lstm), argnums=(0, 1))(inputs, recurrent)
    theirs = jax.grad(loss(autodiff_lstm), argnums=(0, 1))(inputs, recurrent)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, atol=2e-6)


def test_gradient_equals_finite_differences():
    inputs, mask, recurrent = _inputs(3)
    check_grads(
        lambda x, w: lstm(x, mask, w),
        (inputs, recurrent),
        order=1,
        modes=["rev"],
        rtol=2e-2,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_backward_direction_reads_a_padded_clip_from_its_last_frame(dtype):
    rng = np.random.default_rng(4)
    clip = rng.normal(size=(4, 1, 5)).astype(np.float32)
    padded = np.concatenate([clip, rng.normal(size=(3, 1, 5)).astype(np.float32)])
    module = BidirectionalLSTM(H, dtype)
    variables = module.init(jax.random.key(0), clip, np.ones((4, 1), np.float32))
    alone = module.apply(variables, clip, np.ones((4, 1), np.float32))
    mask = np.array([[1.0]] * 4 + [[0.0]] * 3, np.float32)
    with_padding = module.apply(variables, padded, mask)
    np.testing.assert_allclose(with_padding[:4], alone, atol=1e-6)
    assert not np.any(with_padding[4:])


def test_backward_half_is_the_forward_half_of_the_reversed_clip():
    clip = np.random.default_rng(5).normal(size=(5, 2, 3)).astype(np.float32)
    mask = np.ones((5, 2), np.float32)
    module = BidirectionalLSTM(H)
    params = module.init(jax.random.key(0), clip, mask)["params"]
    swapped = {
        "input": jax.tree.map(lambda w: jnp.roll(w, 4 * H, axis=-1), params["input"]),
        "recurrent": params["recurrent"][::-1],
    }
    ahead = module.apply({"params": params}, clip, mask)
    back = module.apply({"params": swapped}, clip[::-1], mask)
    np.testing.assert_allclose(ahead[..., H:], back[::-1, :, :H], atol=1e-6)
