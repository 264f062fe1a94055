"""Bidirectional LSTM: one input product for both directions, a hand-derived gradient.

Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997), with the forget gate of Gers,
Schmidhuber and Cummins (2000). Gates lie in the order input, forget, cell, output.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Residuals = tuple[Array, ...]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def lstm(
    inputs_TxBx4H: Float[Array, "T B 4H"],
    mask_TxBx1: Float[Array, "T B 1"],
    recurrent_Hx4H: Float[Array, "H 4H"],
    dtype: Any = jnp.float32,
) -> Float[Array, "T B H"]:
    """Run an LSTM over gate inputs that already hold W·x + b; returns the outputs h.

    The state is held at 0 wherever the mask is 0, so padding before or after a clip
    changes nothing. `dtype` is that of the recurrent product; gates are float32.
    """
    return _forward(inputs_TxBx4H, mask_TxBx1, recurrent_Hx4H, dtype)[0]


def _forward(
    inputs_TxBx4H: Array, mask_TxBx1: Array, recurrent_Hx4H: Array, dtype: Any
) -> tuple[Array, Residuals]:
    """Outputs, and what the gradient needs: the activated gates and both states."""
    weights = recurrent_Hx4H.astype(dtype)
    batch, hidden = inputs_TxBx4H.shape[1], recurrent_Hx4H.shape[0]

    def step(state: tuple[Array, Array], x: tuple[Array, Array]) -> Any:
        h, c = state
        gates, mask = x
        gates = gates + _product(h.astype(dtype), weights)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        i, f, g, o = (
            jax.nn.sigmoid(i),
            jax.nn.sigmoid(f),
            jnp.tanh(g),
            jax.nn.sigmoid(o),
        )
        c = mask * (f * c + i * g)
        h = mask * o * jnp.tanh(c)
        return (h, c), (h, c, jnp.concatenate([i, f, g, o], axis=-1))

    zeros = jnp.zeros((batch, hidden), jnp.float32)
    inputs = inputs_TxBx4H.astype(jnp.float32)
    _, (h_TxBxH, c_TxBxH, gates_TxBx4H) = jax.lax.scan(
        step, (zeros, zeros), (inputs, mask_TxBx1)
    )
    return h_TxBxH, (h_TxBxH, c_TxBxH, gates_TxBx4H, mask_TxBx1, recurrent_Hx4H)


def _fwd(
    inputs_TxBx4H: Array, mask_TxBx1: Array, recurrent_Hx4H: Array, dtype: Any
) -> tuple[Array, tuple[Residuals, Array]]:
    output, residuals = _forward(inputs_TxBx4H, mask_TxBx1, recurrent_Hx4H, dtype)
    return output, (residuals, jnp.zeros((), inputs_TxBx4H.dtype))


def _bwd(
    dtype: Any, saved: tuple[Residuals, Array], dh_TxBxH: Array
) -> tuple[Array, Array, Array]:
    """Backpropagation through time; the weight gradient is one product after the scan."""
    (h_TxBxH, c_TxBxH, gates_TxBx4H, mask_TxBx1, recurrent_Hx4H), input_like = saved
    transposed = recurrent_Hx4H.T.astype(dtype)
    before = jnp.zeros_like(h_TxBxH[:1])
    c_before_TxBxH = jnp.concatenate([before, c_TxBxH[:-1]])

    def step(state: tuple[Array, Array], x: tuple[Array, ...]) -> Any:
        dh_next, dc_next = state
        dh, gates, c, c_before, mask = x
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        tanh_c = jnp.tanh(c)
        dh = mask * (dh + dh_next)
        dc = mask * dc_next + dh * o * (1 - tanh_c**2)
        dgates = jnp.concatenate(
            [
                dc * g * i * (1 - i),
                dc * c_before * f * (1 - f),
                dc * i * (1 - g**2),
                dh * tanh_c * o * (1 - o),
            ],
            axis=-1,
        )
        return (_product(dgates.astype(dtype), transposed), dc * f), dgates

    zeros = jnp.zeros(h_TxBxH.shape[1:], jnp.float32)
    _, dgates_TxBx4H = jax.lax.scan(
        step,
        (zeros, zeros),
        (dh_TxBxH, gates_TxBx4H, c_TxBxH, c_before_TxBxH, mask_TxBx1),
        reverse=True,
    )
    h_before_TxBxH = jnp.concatenate([before, h_TxBxH[:-1]])
    hidden = h_TxBxH.shape[-1]
    drecurrent_Hx4H = _product(
        h_before_TxBxH.reshape(-1, hidden).T.astype(dtype),
        dgates_TxBx4H.reshape(-1, 4 * hidden).astype(dtype),
    )
    return (
        dgates_TxBx4H.astype(input_like.dtype),
        jnp.zeros_like(mask_TxBx1),
        drecurrent_Hx4H,
    )


lstm.defvjp(_fwd, _bwd)


def _product(a: Array, b: Array) -> Array:
    """Matrix product in the operands' dtype, summed in float32."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


class BidirectionalLSTM(nn.Module):
    """Forward and backward LSTM, their outputs side by side."""

    hidden_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, inputs_TxBxP: Float[Array, "T B P"], mask_TxB: Float[Array, "T B"]
    ) -> Float[Array, "T B 2H"]:
        """Returns h of both directions; 0 where the mask is 0."""
        hidden = self.hidden_size
        # one product for both directions' inputs, outside the scan
        gates_TxBx8H = nn.Dense(
            8 * hidden, dtype=self.dtype, bias_init=_forget_bias(hidden), name="input"
        )(inputs_TxBxP)
        orthogonal = nn.initializers.orthogonal()
        recurrent_2xHx4H = self.param(
            "recurrent",
            lambda key: jnp.stack(
                [
                    jnp.concatenate(
                        [
                            orthogonal(k, (hidden, hidden))
                            for k in jax.random.split(d, 4)
                        ],
                        axis=-1,
                    )
                    for d in jax.random.split(key)
                ]
            ),
        )
        mask_TxBx1 = mask_TxB[..., None].astype(jnp.float32)
        forward_TxBx4H, backward_TxBx4H = jnp.split(gates_TxBx8H, 2, axis=-1)
        forward = lstm(forward_TxBx4H, mask_TxBx1, recurrent_2xHx4H[0], self.dtype)
        backward = lstm(
            backward_TxBx4H[::-1], mask_TxBx1[::-1], recurrent_2xHx4H[1], self.dtype
        )
        return jnp.concatenate([forward, backward[::-1]], axis=-1)


def _forget_bias(hidden: int) -> Any:
    """Bias 1 for the forget gates, 0 elsewhere (Jozefowicz et al. 2015)."""
    one = jnp.concatenate([jnp.zeros(hidden), jnp.ones(hidden), jnp.zeros(2 * hidden)])
    return lambda key, shape, dtype=jnp.float32: jnp.concatenate([one, one]).astype(
        dtype
    )
