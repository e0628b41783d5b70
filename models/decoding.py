"""Continues texts one token at a time, caching past keys and values.

B rows, L tokens of a call, C length of the cache, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import Mesh
import numpy as np

from steepest.models import layers
from steepest.models.config import ModelConfig

Cache = dict[str, Any]
# (params, cache, tokens_BxL, positions_BxL, last_B) → (logits_BxV, cache)
Extend = Callable[..., tuple[jax.Array, Cache]]


def make_cache(model: ModelConfig, rows: int, length: int) -> Cache:
  """Returns an empty cache with C = `length` positions per row."""
  shape = (rows, length, model.num_kv_heads, model.head_dim)
  zeros = lambda: jnp.zeros(shape, model.compute_dtype)
  return {
    f'block_{i}': {'keys': zeros(), 'values': zeros()}
    for i in range(model.num_layers)
  }


def extend(
  module: nn.Module,
  params: Any,
  cache: Cache,
  tokens_BxL: jax.Array,
  positions_BxL: jax.Array,
  last_B: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Appends tokens to the rows and returns logits for the next ones.

  The cache must hold all positions below those of the tokens. What follows a
  row's last token may be anything: later calls overwrite it before any token
  attends to it.

  Args:
    module: the model.
    params: its parameters.
    cache: keys and values of the tokens so far.
    tokens_BxL: tokens to append.
    positions_BxL: positions of these tokens, each below C.
    last_B: index of each row's last token among its L.

  Returns:
    Float32 logits B×V after each row's last token, and the extended cache.
  """
  (x_BxLxD, readout_VxD), new = module.apply(
    {'params': params, 'cache': cache},
    tokens_BxL,
    None,
    positions_BxL,
    True,
    mutable=['cache'],
  )
  x_BxD = x_BxLxD[jnp.arange(last_B.shape[0]), last_B]
  logits_BxV = layers.matmul(x_BxD, readout_VxD.astype(x_BxD.dtype).T)
  return logits_BxV.astype(jnp.float32), new['cache']


class Sampler:
  """Continues token ids, greedily or by sampling.

  One pass processes the prompts; after that each new token costs a pass over
  that token only. Two programs, one for prompts and one for new tokens, serve
  all temperatures and seeds, and all lengths up to the next power of two.

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
      extend_fn: `extend` of a module.
      make_cache: (rows, length) → empty cache.
      vocab_size: ids from here on (padding of the vocabulary) are never drawn.
      mesh: mesh that holds the parameters; None: one device.
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
    """Yields the next token of each row, deterministically.

    A row ends with `eos_id`, which is yielded, or with its `max_length`th
    token; after that it yields None. A row's draws do not depend on the other
    rows.

    Args:
      params: first argument of the extend function.
      prompts: initial ids, at least one in each.
      tokens: how many to add to each, at most.
      max_length: longest sequence that the model takes, in tokens.
      temperature: divides the logits; 0: always the most likely token.
      top_k: draw from this many of the most likely tokens; 0: from all.
      top_p: of those, draw from the most likely ones that together have this
        probability (nucleus sampling, arXiv 1904.09751).
      seed: seed of the draws.
      eos_id: the token that ends a row; None: none does.

    Raises:
      ValueError: a prompt has more than `max_length` tokens.
    """
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    longest = max(map(len, prompts))
    if longest > max_length:
      raise ValueError(
        f'a prompt has {longest} tokens, the model takes at most {max_length}: '
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
      # Ended rows stay in the batch, at a position that the cache has.
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
    # The most likely token always stays.
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

  # Sorting the vocabulary takes longer than a small model's pass.
  return jax.lax.cond(temperature > 0, drawn, lambda: logits_BxV.argmax(-1))


def _power(length: int) -> int:
  """Returns the smallest power of two that is at least `length`."""
  return 1 << (length - 1).bit_length()
