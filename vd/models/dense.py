"""Dense layers whose gradients are products that run fast on a CPU.

JAX computes a weight gradient as the transpose of dyᵀ·x, for which XLA's CPU compiler may
first copy a whole transposed array.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_TALL = 4  # times as many rows as columns


@jax.custom_vjp
def product(x: Float[Array, "... M"], weight: Float[Array, "M N"]) -> Array:
    """x · weight, in the operands' dtype."""
    return jnp.matmul(x, weight)


def _fwd(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(x, weight), (x, weight)


def _bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Gradients as products of the arrays as they lie in memory, without a transpose."""
    x, weight = saved
    dx = _contract(dy, weight, dy.ndim - 1, 1)
    rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if weight.shape[0] <= _TALL * weight.shape[1]:
        return dx, _contract(*rows, 0, 0)
    # the wide operand is read faster on the right; the barrier keeps XLA from turning it
    return dx, jax.lax.optimization_barrier(_contract(*rows[::-1], 0, 0)).T


product.defvjp(_fwd, _bwd)


def _contract(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """Sum of products over one axis of each."""
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())))


def dense(features: int, name: str, dtype: Any = jnp.float32, **more: Any) -> nn.Dense:
    """`nn.Dense` with that gradient."""

    def dot_general(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
        return product(x, kernel)

    return nn.Dense(features, dtype=dtype, name=name, dot_general=dot_general, **more)
