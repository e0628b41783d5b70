"""Texts from a causal language model, a token at a time.

Shape letters: B rows, L tokens of a call, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

# (params, cache, tokens_BxL, positions_BxL, last_B) -> (logits_BxV, cache)
Extend = Callable[..., tuple[jax.Array, Any]]


class Sampler:
  """Continues token ids, greedily or by sampling.

  The prompts go through the model at once; from then on a token costs a pass
  over that token alone. Two programs, one for the prompts and one for the
  tokens that follow, serve all temperatures and seeds, and all lengths up to
  the next power of two.

  Attributes:
    compilations: programs compiled so far.
  """

  def __init__(
    self,
    extend_fn: Extend,
    make_cache: Callable[[int, int], Any],
    vocab_size: int,
    mesh: Mesh | None = None,
  ):
    """Makes the sampler.

    Args:
      extend_fn: pure function as models/decoding.py has it, without the module.
      make_cache: (rows, length) -> empty cache.
      vocab_size: ids from here on (a padded vocabulary's) are never drawn.
      mesh: that the parameters lie on; None: one device.
    """
    self._extend = extend_fn
    self._make_cache = make_cache
    self._vocab_size = vocab_size
    self._mesh = mesh
    self.compilations = 0
    self._apply = jax.jit(self._next, donate_argnums=1)

  def __call__(
    self,
    params: Any,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    max_length: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    eos_id: int | None = None,
  ) -> Iterator[list[int | None]]:
    """Yields a token of each row at a time, the same for the same arguments.

    A row ends with `eos_id`, which is yielded, or where it has `max_length`
    tokens; from then on it yields None. What a row draws does not depend on
    the other rows.

    Args:
      params: first argument of the extend function.
      prompts: ids to start from, at least one in each.
      tokens: how many to add to each, at most.
      max_length: tokens that the model takes.
      temperature: divides the logits; 0: always the likeliest token.
      top_k: only that many of the likeliest tokens are drawn; 0: all.
      top_p: of those, only the likeliest that together have this probability
        are drawn (nucleus sampling, arXiv 1904.09751).
      seed: of the draws.
      eos_id: that ends a row; None: none does.

    Raises:
      ValueError: a prompt has more than `max_length` tokens.
    """
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    longest = int(lengths_B.max())
    if longest > max_length:
      raise ValueError(
        f'a prompt has {longest} tokens, the model takes {max_length}: '
        'shorten it'
      )
    draw = functools.partial(
      self._call,
      seed=np.uint32(seed),
      temperature=np.float32(temperature),
      top_k=np.int32(top_k),
      top_p=np.float32(top_p),
    )
    room = min(max_length, _power(longest + tokens))
    cache = self._make_cache(len(prompts), room)
    padded = min(room, _power(longest))
    tokens_BxL = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in enumerate(prompts):
      tokens_BxL[row, : len(prompt)] = prompt
    positions_BxL = np.broadcast_to(
      np.arange(padded, dtype=np.int32)[None], tokens_BxL.shape
    )
    ids_B, cache = draw(params, cache, tokens_BxL, positions_BxL, lengths_B - 1)
    alive = [True] * len(prompts)
    for count in range(1, tokens + 1):
      shown = [int(i) if on else None for i, on in zip(ids_B, alive)]
      yield shown
      for row, token in enumerate(shown):
        full = lengths_B[row] + count >= max_length
        alive[row] &= not full and (eos_id is None or token != eos_id)
      if count == tokens or not any(alive):
        return
      # Rows that have ended go along, at a place that the cache has.
      at_B = np.minimum(lengths_B + count - 1, room - 1)
      ids_B, cache = draw(
        params, cache, ids_B[:, None], at_B[:, None], np.zeros_like(at_B)
      )

  def _call(self, *args: Any, **keys: Any) -> tuple[np.ndarray, Any]:
    with contextlib.ExitStack() as stack:
      if self._mesh is not None:
        stack.enter_context(jax.set_mesh(self._mesh))
      ids_B, cache = self._apply(*args, **keys)
    return np.asarray(ids_B), cache

  def _next(
    self,
    params: Any,
    cache: Any,
    tokens_BxL: jax.Array,
    positions_BxL: jax.Array,
    last_B: jax.Array,
    **how: jax.Array,
  ) -> tuple[jax.Array, Any]:
    """Returns the next id of each row, B, and the cache."""
    self.compilations += 1  # This body runs only when JAX traces it.
    logits_BxV, cache = self._extend(
      params, cache, tokens_BxL, positions_BxL, last_B
    )
    position_B = jnp.take_along_axis(positions_BxL, last_B[:, None], 1)[:, 0]
    ids_B = pick(logits_BxV[:, : self._vocab_size], position_B, **how)
    return ids_B.astype(jnp.int32), cache


def pick(
  logits_BxV: jax.Array,
  position_B: jax.Array,
  *,
  seed: jax.Array,
  temperature: jax.Array,
  top_k: jax.Array,
  top_p: jax.Array,
) -> jax.Array:
  """Returns an id of each row, B: a function of seed, row and position."""

  def drawn() -> jax.Array:
    order_BxV = jnp.argsort(-logits_BxV, stable=True)
    ranked_BxV = jnp.take_along_axis(logits_BxV, order_BxV, -1) / temperature
    rank_1xV = jnp.arange(logits_BxV.shape[-1])[None]
    beyond_1xV = (rank_1xV >= top_k) & (top_k > 0)
    logp_BxV = jax.nn.log_softmax(jnp.where(beyond_1xV, -jnp.inf, ranked_BxV))
    p_BxV = jnp.exp(logp_BxV)
    # The likeliest token always stays.
    kept_BxV = (jnp.cumsum(p_BxV, -1) - p_BxV < top_p) | (rank_1xV == 0)
    key = jax.random.key(seed)
    rank_B = jax.vmap(
      lambda row, position, logp_V: jax.random.categorical(
        jax.random.fold_in(jax.random.fold_in(key, row), position), logp_V
      )
    )(
      jnp.arange(logits_BxV.shape[0]),
      position_B,
      jnp.where(kept_BxV, logp_BxV, -jnp.inf),
    )
    return jnp.take_along_axis(order_BxV, rank_B[:, None], -1)[:, 0]

  # Sorting the vocabulary takes longer than a small model does.
  return jax.lax.cond(temperature > 0, drawn, lambda: logits_BxV.argmax(-1))


def _power(length: int) -> int:
  """Returns the power of two that is not below `length`."""
  return 1 << (length - 1).bit_length()
