"""Texts from a causal language model, a token at a time.

Shape letters: B rows, L tokens of a row, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

Logits = Callable[[Any, jax.Array], jax.Array]


class Sampler:
  """Continues token ids, greedily or by nucleus sampling.

  Every token costs a pass over the whole padded row, as nothing is kept from
  the last one; in return any model serves, and one program does for all
  tokens, temperatures and seeds. Serve exported models where speed matters.

  Attributes:
    compilations: programs compiled so far.
  """

  def __init__(
    self, logits_fn: Logits, vocab_size: int, mesh: Mesh | None = None
  ):
    """Makes the sampler.

    Args:
      logits_fn: pure function (params, tokens_BxL int32) -> logits_BxLxV.
      vocab_size: ids from here on (a padded vocabulary's) are never drawn.
      mesh: that the parameters lie on; None: one device.
    """
    self._logits_fn = logits_fn
    self._vocab_size = vocab_size
    self._mesh = mesh
    self.compilations = 0
    ways = {} if mesh is None else dict(mesh.shape)
    # A mesh that splits rows and lengths needs something to split.
    self._rows = math.prod(ways[a] for a in ('data', 'fsdp') if a in ways)
    self._multiple = math.prod(ways[a] for a in ('sequence',) if a in ways)
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    self._apply = jax.jit(self._pick, out_shardings=whole)

  def __call__(
    self,
    params: Any,
    prompt: Sequence[int],
    tokens: int,
    max_length: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
  ) -> Iterator[int]:
    """Yields `tokens` ids, the same for the same arguments.

    Args:
      params: first argument of the logits function.
      prompt: ids to start from, at least one.
      tokens: how many to add.
      max_length: tokens that the model takes; of a longer text it sees the
        last ones.
      temperature: divides the logits; 0: always the likeliest token.
      top_p: only the likeliest tokens that together have this probability are
        drawn (nucleus sampling, arXiv 1904.09751).
      seed: of the draws.
    """
    ids = list(prompt)
    length = min(max_length, len(ids) + tokens)
    # Lengths that are powers of two share programs.
    length = min(max_length, 1 << (length - 1).bit_length())
    length = -(-length // self._multiple) * self._multiple
    for count in range(tokens):
      window = ids[-length:]
      tokens_BxL = np.zeros((self._rows, length), np.int32)
      tokens_BxL[:, : len(window)] = window
      with contextlib.ExitStack() as stack:
        if self._mesh is not None:
          stack.enter_context(jax.set_mesh(self._mesh))
        token = self._apply(
          params,
          tokens_BxL,
          np.int32(len(window) - 1),
          np.uint32(seed),
          np.int32(count),
          np.float32(temperature),
          np.float32(top_p),
        )
      ids.append(int(token))
      yield ids[-1]

  def _pick(
    self,
    params: Any,
    tokens_BxL: jax.Array,
    position: jax.Array,
    seed: jax.Array,
    count: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
  ) -> jax.Array:
    """Returns the next id."""
    self.compilations += 1  # This body runs only when JAX traces it.
    logits_BxLxV = self._logits_fn(params, tokens_BxL)
    logits_V = logits_BxLxV[0, position, : self._vocab_size]
    order_V = jnp.argsort(-logits_V.astype(jnp.float32), stable=True)
    divisor = jnp.where(temperature > 0, temperature, 1.0)
    logp_V = jax.nn.log_softmax(logits_V[order_V].astype(jnp.float32) / divisor)
    p_V = jnp.exp(logp_V)
    # The likeliest token always stays.
    kept_V = (jnp.cumsum(p_V) - p_V < top_p).at[0].set(True)
    key = jax.random.fold_in(jax.random.key(seed), count)
    rank = jax.random.categorical(key, jnp.where(kept_V, logp_V, -jnp.inf))
    return order_V[jnp.where(temperature > 0, rank, 0)]
