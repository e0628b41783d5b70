"""Cautious updates (Liang et al., arXiv 2411.16085): no optimizer by itself."""

from typing import Any

import jax
import optax


def cautious(
  transform: optax.GradientTransformation,
) -> optax.GradientTransformation:
  r"""Leaves out of a direction what the gradient points away from.

  .. math::
    \phi_i = [u_i g_i > 0], \quad
    u_i \leftarrow u_i \phi_i \frac{n}{1 + \sum_j \phi_j}

  over the n entries of each parameter (algorithm 1; its constant ξ is 1), so
  that a parameter moves about as far as without it.

  Args:
    transform: whose updates are directions, subtracted by the chain.
  """

  def update(grads: Any, state: Any, params: Any = None):
    updates, state = transform.update(grads, state, params)

    def keep(u: jax.Array, g: jax.Array) -> jax.Array:
      agrees = (u * g > 0).astype(u.dtype)
      return u * agrees * (u.size / (agrees.sum() + 1))

    return jax.tree.map(keep, updates, grads), state

  return optax.GradientTransformation(transform.init, update)
