"""Bidirectional LSTM: one input product for both directions, a hand-derived gradient.

Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997), with the forget gate of Gers,
Schmidhuber and Cummins (2000). Gates lie in the order input, forget, cell, output, those
of the forward direction before those of the backward one.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid
from jaxtyping import Array, Float

_TALL = 4  # times as many rows as columns


@jax.custom_vjp
def product(x: Float[Array, "... M"], weight: Float[Array, "M N"]) -> Array:
    """x · weight, in the operands' dtype."""
    return jnp.matmul(x, weight)


def _product_fwd(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(x, weight), (x, weight)


def _product_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Gradients as products of the arrays as they lie in memory.

    JAX's own is the transpose of dyᵀ·x, for which XLA on a CPU may copy an array first.
    """
    x, weight = saved
    dx = jnp.tensordot(dy, weight, (-1, 1))
    rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if weight.shape[0] <= _TALL * weight.shape[1]:
        return dx, jnp.tensordot(*rows, (0, 0))
    # the wide operand is read faster on the right; the barrier keeps XLA from turning it
    return dx, jax.lax.optimization_barrier(jnp.tensordot(*rows[::-1], (0, 0))).T


product.defvjp(_product_fwd, _product_bwd)


def dense(features: int, name: str, dtype: Any = jnp.float32, **more: Any) -> nn.Dense:
    """`nn.Dense` with that gradient."""

    def dot_general(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
        return product(x, kernel)

    return nn.Dense(features, dtype=dtype, name=name, dot_general=dot_general, **more)


class _Factors(NamedTuple):
    """Partial derivatives at each frame, the factors of the gradient."""

    by_gates_BxTx8H: Array  # of the cell c by the inputs of i, f, g; of h by that of o
    h_by_c_BxTx2H: Array
    c_by_c_BxTx2H: Array  # of the cell by the one before


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def lstm(
    inputs_BxTx8H: Float[Array, "B T 8H"],
    mask_BxT: Float[Array, "B T"],
    recurrent_2xHx4H: Float[Array, "2 H 4H"],
    dtype: Any = jnp.float32,
) -> Float[Array, "B T 2H"]:
    """Run an LSTM in both directions over gate inputs that already hold W·x + b.

    Returns the outputs h, side by side. The mask is 0 or 1; the state is held at 0 wherever
    it is 0, so padding before or after a clip changes nothing. `dtype` is that of the inputs
    and of the recurrent product; gates are float32.
    """
    return _forward(inputs_BxTx8H, mask_BxT, recurrent_2xHx4H, dtype, keep=False)[0]


def _forward(
    inputs_BxTx8H: Array,
    mask_BxT: Array,
    recurrent_2xHx4H: Array,
    dtype: Any,
    keep: bool,
) -> tuple[Array, _Factors]:
    """Outputs and, with `keep`, the factors; those by gates overwrite the gates' inputs.

    Each step reads and writes its frames in place: a scan would transpose whole arrays.
    """
    batch, frames = mask_BxT.shape
    hidden = recurrent_2xHx4H.shape[1]
    # both directions' weights, sliced once and not at every step
    weights = jax.lax.optimization_barrier(tuple(recurrent_2xHx4H.astype(dtype)))

    def step(number: Array, carry: Any) -> Any:
        states, h_BxTx2H, factors = carry
        after = []
        for d, time in enumerate((number, frames - 1 - number)):
            h, before = states[d]
            inputs = _read(factors.by_gates_BxTx8H, time, d, 4 * hidden)
            gates = _activate(inputs + _product(h.astype(dtype), weights[d]))
            mask = _read(mask_BxT[..., None], time, 0, 1)
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = mask * (f * before + i * g)
            tanh_c = jnp.tanh(c)
            h = mask * o * tanh_c
            h_BxTx2H = _write(h_BxTx2H, h, time, d)
            if keep:
                by_gates, h_by_c, c_by_c = factors
                parts = (
                    mask * g * i * (1 - i),
                    mask * before * f * (1 - f),
                    mask * i * (1 - g**2),
                    mask * tanh_c * o * (1 - o),
                )
                for gate, part in enumerate(parts):  # one by one: without a copy
                    by_gates = _write(by_gates, part, time, 4 * d + gate)
                h_by_c = _write(h_by_c, o * (1 - tanh_c**2), time, d)
                c_by_c = _write(c_by_c, mask * f, time, d)
                factors = _Factors(by_gates, h_by_c, c_by_c)
            after.append((h, c))
        return tuple(after), h_BxTx2H, factors

    empty_BxTx2H = jnp.zeros((batch, frames, 2 * hidden), jnp.float32)
    factors = _Factors(inputs_BxTx8H.astype(jnp.float32), empty_BxTx2H, empty_BxTx2H)
    carry = _zero_states(batch, hidden), empty_BxTx2H, factors
    _, h_BxTx2H, factors = jax.lax.fori_loop(0, frames, step, carry)
    return h_BxTx2H, factors


def _activate(inputs_Bx4H: Array) -> Array:
    """tanh of the cell gate, sigmoid of the others: both of all gates, in one pass."""
    gate_1x4H = jnp.arange(inputs_Bx4H.shape[-1])[None] // (inputs_Bx4H.shape[-1] // 4)
    return jnp.where(gate_1x4H == 2, jnp.tanh(inputs_Bx4H), sigmoid(inputs_Bx4H))


def _fwd(
    inputs_BxTx8H: Array, mask_BxT: Array, recurrent_2xHx4H: Array, dtype: Any
) -> tuple[Array, Any]:
    h_BxTx2H, factors = _forward(
        inputs_BxTx8H, mask_BxT, recurrent_2xHx4H, dtype, keep=True
    )
    return h_BxTx2H, (h_BxTx2H, factors, mask_BxT, recurrent_2xHx4H)


def _bwd(dtype: Any, residuals: Any, dh_BxTx2H: Array) -> tuple[Array, Array, Array]:
    """Backpropagation through time; weight gradients are one product each after it."""
    h_BxTx2H, factors, mask_BxT, recurrent_2xHx4H = residuals
    batch, frames = mask_BxT.shape
    hidden = recurrent_2xHx4H.shape[1]
    transposed = jax.lax.optimization_barrier(
        tuple(w_Hx4H.T.astype(dtype) for w_Hx4H in recurrent_2xHx4H)
    )

    def step(number: Array, carry: Any) -> Any:
        states, dgates_BxTx8H = carry
        after = []
        for d, time in enumerate((frames - 1 - number, number)):
            by_gates, h_by_c, c_by_c = (
                _read(part, time, d, part.shape[-1] // 2) for part in factors
            )
            dh_next, dc_next = states[d]
            dh = _read(dh_BxTx2H, time, d, hidden) + dh_next
            dc = dc_next + dh * h_by_c
            # concatenated first: XLA would compute products of parts element by element
            dgates = jnp.concatenate([dc, dc, dc, dh], axis=-1) * by_gates
            dgates_BxTx8H = _write(dgates_BxTx8H, dgates, time, d)
            after.append((_product(dgates.astype(dtype), transposed[d]), dc * c_by_c))
        return tuple(after), dgates_BxTx8H

    carry = _zero_states(batch, hidden), jnp.zeros_like(factors.by_gates_BxTx8H)
    _, dgates_BxTx8H = jax.lax.fori_loop(0, frames, step, carry)
    before = (
        jnp.pad(h_BxTx2H[:, :-1, :hidden], ((0, 0), (1, 0), (0, 0))),
        jnp.pad(h_BxTx2H[:, 1:, hidden:], ((0, 0), (0, 1), (0, 0))),
    )
    drecurrent = [  # products over all frames
        _product(
            h.astype(dtype).reshape(-1, hidden).T,
            dgates.astype(dtype).reshape(-1, 4 * hidden),
        )
        for h, dgates in zip(before, jnp.split(dgates_BxTx8H, 2, axis=-1), strict=True)
    ]
    dinputs_BxTx8H = dgates_BxTx8H.astype(dtype)
    return dinputs_BxTx8H, jnp.zeros_like(mask_BxT), jnp.stack(drecurrent)


lstm.defvjp(_fwd, _bwd)


def _zero_states(batch: int, hidden: int) -> Any:
    """(h, c) of either direction, or their gradients."""
    zeros = jnp.zeros((batch, hidden), jnp.float32)
    return (zeros, zeros), (zeros, zeros)


def _read(array_BxTxN: Array, time: Any, number: int, size: int) -> Array:
    """(B, size): part `number` of one frame; parts are of equal size."""
    begin = (0, time, number * size)
    return jax.lax.dynamic_slice(array_BxTxN, begin, (array_BxTxN.shape[0], 1, size))[
        :, 0
    ]


def _write(array_BxTxN: Array, part: Array, time: Any, number: int) -> Array:
    """The array with part `number` of one frame replaced."""
    begin = (0, time, number * part.shape[-1])
    return jax.lax.dynamic_update_slice(array_BxTxN, part[:, None], begin)


def _product(a: Array, b: Array) -> Array:
    """Matrix product in the operands' dtype, summed in float32."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


class BidirectionalLSTM(nn.Module):
    """Forward and backward LSTM, their outputs side by side."""

    hidden_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, inputs_BxTxP: Float[Array, "B T P"], mask_BxT: Float[Array, "B T"]
    ) -> Float[Array, "B T 2H"]:
        """Returns h of both directions; 0 where the mask is 0."""
        hidden = self.hidden_size
        # one product for both directions' inputs, outside the loop
        # bias 1 for the forget gates, 0 elsewhere (Jozefowicz et al. 2015)
        bias_8H = np.tile(np.repeat([0.0, 1.0, 0.0, 0.0], hidden), 2)
        bias_init = nn.initializers.constant(bias_8H)
        inputs_BxTx8H = dense(8 * hidden, "input", self.dtype, bias_init=bias_init)(
            inputs_BxTxP
        )
        recurrent_2xHx4H = self.param("recurrent", _orthogonal, hidden)
        mask_BxT = mask_BxT.astype(jnp.float32)
        return lstm(inputs_BxTx8H, mask_BxT, recurrent_2xHx4H, self.dtype)


def _orthogonal(key: Array, hidden: int) -> Array:
    """An orthogonal matrix a gate and direction (Saxe et al. 2014)."""
    one = nn.initializers.orthogonal()
    matrices = [
        [one(k, (hidden, hidden)) for k in jax.random.split(d, 4)]
        for d in jax.random.split(key)
    ]
    return jnp.stack([jnp.concatenate(row, axis=-1) for row in matrices])
