"""Log-likelihoods of continuations, in batches of few shapes.

Shape letters: B rows of a batch, L tokens of a row, V vocabulary, C
continuations of a row.

A row carries every request whose input is a prefix of its tokens: in a causal
model what follows a position cannot change it. So the four letters of a
multiple-choice question cost one pass, and choices of one token ride on longer
ones. Each scored token is a point: the position whose logits predict it, the
token, and the continuation that owns it.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from steepest.eval import requests as requests_lib

# Continuations that one row can carry; further ones get a row of their own.
_CONTINUATIONS = 8
# Rows are padded to max_length / 2^i, i = 0 … 5.
_LENGTHS = 6
_SHORTEST = 32
# Bytes of float32 logits of a batch on each device: on a CPU what stays near
# the caches is fastest.
_LOGITS_BYTES = 2**30
_LOGITS_BYTES_CPU = 2**23
# Tokens of a batch on each device, however large or small the vocabulary.
_FEWEST_TOKENS = 256
_MOST_TOKENS = 2**14

Logits = Callable[[Any, jax.Array], jax.Array]
Progress = Callable[[int, int], None]
_Target = tuple[tuple[int, ...], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Score:
  """Sum of log-probabilities (natural) and whether every token was argmax."""

  loglikelihood: float
  is_greedy: bool


@dataclasses.dataclass
class _Row:
  """Tokens, and what is scored on them: (index of target, ids)."""

  tokens: tuple[int, ...]
  spans: list[tuple[int, _Target]]
  points: int


class ScoreFn:
  """Scores requests with one jitted function of the parameters.

  Parameters are an argument, so a model in training is scored again and again
  without compiling again.

  Attributes:
    compilations: programs compiled so far.
  """

  def __init__(self, logits_fn: Logits, mesh: Mesh | None = None):
    """See `make_score_fn`."""
    self._logits_fn = logits_fn
    self._mesh = mesh
    self.compilations = 0
    self._ways: dict[str, int] = {} if mesh is None else dict(mesh.shape)
    self._row_axes = tuple(a for a in ('data', 'fsdp') if a in self._ways)
    self._length_axes = tuple(a for a in ('sequence',) if a in self._ways)
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    self._apply = jax.jit(self._score, out_shardings=whole)

  def __call__(
    self,
    params: Any,
    requests: Sequence[requests_lib.Request],
    max_length: int,
    progress: Progress | None = None,
  ) -> list[Score]:
    """Scores `requests`.

    Args:
      params: first argument of the logits function.
      requests: what to score; their order does not matter to the results.
      max_length: tokens that the model takes; longer inputs lose their start.
      progress: called with requests done and requests in all.

    Returns:
      A score for each request, in order.

    Raises:
      ValueError: a continuation is longer than the model, or a result is NaN.
    """
    targets: dict[_Target, list[int]] = {}
    for index, request in enumerate(requests):
      target = requests_lib.truncate(request, max_length)
      targets.setdefault(target, []).append(index)
    rows = _pack(list(targets))
    scores: list[Score] = [Score(0.0, False)] * len(requests)
    done = 0
    # Batches whose results are not awaited yet: one is computed while the
    # next is put together.
    flying: collections.deque[tuple[list[_Row], Any]] = collections.deque()
    with contextlib.ExitStack() as stack:
      if self._mesh is not None:
        stack.enter_context(jax.set_mesh(self._mesh))
      batches = self._batch(params, rows, max_length)
      while True:
        batch = next(batches, None)
        if batch is not None:
          flying.append((batch[0], self._apply(params, *batch[1])))
        if len(flying) > 1 or (flying and batch is None):
          done += _collect(*flying.popleft(), targets, scores)
          if progress is not None:
            progress(done, len(requests))
        elif batch is None:
          return scores

  def _batch(
    self, params: Any, rows: list[_Row], max_length: int
  ) -> Iterator[tuple[list[_Row], list[jax.Array]]]:
    """Yields rows and their arrays, longest rows first."""
    shards = math.prod(self._ways[axis] for axis in self._row_axes)
    probe = jax.ShapeDtypeStruct((shards, max_length), jnp.int32)
    vocab_size = jax.eval_shape(self._logits_fn, params, probe).shape[-1]
    on_cpu = _platform(self._mesh) == 'cpu'
    logits_bytes = _LOGITS_BYTES_CPU if on_cpu else _LOGITS_BYTES
    tokens = min(logits_bytes // (4 * vocab_size), _MOST_TOKENS)
    tokens = max(tokens, _FEWEST_TOKENS)
    parts = math.prod(self._ways[axis] for axis in self._length_axes)
    lengths = _bucket_lengths(max_length, parts)
    rows = sorted(rows, key=lambda row: len(row.tokens), reverse=True)
    while rows:
      length = min(x for x in lengths if x >= len(rows[0].tokens))
      size = max(1, tokens // length) * shards
      yield rows[:size], self._place(_arrays(rows[:size], size, length))
      rows = rows[size:]

  def _place(self, arrays: Sequence[np.ndarray]) -> list[jax.Array]:
    if self._mesh is None:
      return [jax.device_put(array) for array in arrays]
    sharding = NamedSharding(self._mesh, PartitionSpec(self._row_axes or None))
    return [
      jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
      for array in arrays
    ]

  def _score(
    self,
    params: Any,
    tokens_BxL: jax.Array,
    positions_BxL: jax.Array,
    targets_BxL: jax.Array,
    owners_BxL: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns loglikelihood_BxC and is_greedy_BxC; owner -1 is padding."""
    self.compilations += 1  # This body runs only when JAX traces it.
    logits_BxLxV = self._logits_fn(params, tokens_BxL).astype(jnp.float32)
    normalizer_BxL = jax.nn.logsumexp(logits_BxLxV, axis=-1)
    best_BxL = _argmax(logits_BxLxV)
    row_Bx1 = jnp.arange(tokens_BxL.shape[0])[:, None]
    chosen_BxL = logits_BxLxV[row_Bx1, positions_BxL, targets_BxL]
    logp_BxL = chosen_BxL - normalizer_BxL[row_Bx1, positions_BxL]
    hit_BxL = best_BxL[row_Bx1, positions_BxL] == targets_BxL
    owned_BxLxC = (
      owners_BxL[..., None] == jnp.arange(_CONTINUATIONS)[None, None]
    )
    loglikelihood_BxC = jnp.sum(logp_BxL[..., None], 1, where=owned_BxLxC)
    is_greedy_BxC = jnp.all(hit_BxL[..., None] | ~owned_BxLxC, axis=1)
    return loglikelihood_BxC, is_greedy_BxC


def make_score_fn(logits_fn: Logits, mesh: Mesh | None = None) -> ScoreFn:
  """Returns the scorer of a causal language model.

  Args:
    logits_fn: pure function (params, tokens_BxL int32) -> logits_BxLxV, whose
      logits at a position depend on the tokens up to it only.
    mesh: rows are split over its axes `data` and `fsdp`; None: one device.
  """
  return ScoreFn(logits_fn, mesh)


def _argmax(logits_BxLxV: jax.Array) -> jax.Array:
  """Returns the lowest index of the maximum.

  XLA's CPU code for two plain reductions is faster than for jnp.argmax.
  """
  top_BxLx1 = jnp.max(logits_BxLxV, axis=-1, keepdims=True)
  index_1x1xV = jnp.arange(logits_BxLxV.shape[-1])[None, None]
  nowhere = logits_BxLxV.shape[-1]
  is_top_BxLxV = logits_BxLxV == top_BxLx1
  return jnp.where(is_top_BxLxV, index_1x1xV, nowhere).min(axis=-1)


def _platform(mesh: Mesh | None) -> str:
  return (
    jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  )


def _bucket_lengths(max_length: int, multiple: int) -> list[int]:
  """Returns the lengths that rows are padded to, longest first.

  Few, because each costs a compilation, and a function of `max_length` alone,
  so that all tasks share them.
  """
  lengths = [max_length]
  for i in range(1, _LENGTHS):
    length = -(-max_length // (2**i * multiple)) * multiple
    if _SHORTEST <= length < lengths[-1]:
      lengths.append(length)
  return lengths


def _pack(targets: Sequence[_Target]) -> list[_Row]:
  """Puts each target on a row that starts with its input."""
  # Descending order puts every input right behind those it is a prefix of.
  order = sorted(range(len(targets)), key=targets.__getitem__, reverse=True)
  rows: list[_Row] = []
  for index in order:
    inputs, ids = targets[index]
    row = rows[-1] if rows else None
    if (
      row is None
      or row.tokens[: len(inputs)] != inputs
      or row.points + len(ids) > len(row.tokens)
      or len(row.spans) == _CONTINUATIONS
    ):
      rows.append(_Row(inputs, [], 0))
    rows[-1].spans.append((index, targets[index]))
    rows[-1].points += len(ids)
  return rows


def _arrays(rows: Sequence[_Row], size: int, length: int) -> list[np.ndarray]:
  """Returns tokens, positions, targets and owners of a batch, padded right."""
  tokens_BxL, positions_BxL, targets_BxL = np.zeros((3, size, length), np.int32)
  owners_BxL = np.full((size, length), -1, np.int32)
  for b, row in enumerate(rows):
    tokens_BxL[b, : len(row.tokens)] = row.tokens
    start = 0
    for owner, (_, (inputs, ids)) in enumerate(row.spans):
      points = slice(start, start + len(ids))
      positions_BxL[b, points] = range(len(inputs) - len(ids), len(inputs))
      targets_BxL[b, points] = ids
      owners_BxL[b, points] = owner
      start += len(ids)
  return [tokens_BxL, positions_BxL, targets_BxL, owners_BxL]


def _collect(
  rows: Sequence[_Row],
  outputs: tuple[jax.Array, jax.Array],
  targets: dict[_Target, list[int]],
  scores: list[Score],
) -> int:
  """Writes a batch's results into `scores`; returns how many."""
  loglikelihood_BxC, is_greedy_BxC = jax.device_get(outputs)
  count = 0
  for b, row in enumerate(rows):
    for c, (_, target) in enumerate(row.spans):
      score = Score(float(loglikelihood_BxC[b, c]), bool(is_greedy_BxC[b, c]))
      if math.isnan(score.loglikelihood):
        raise ValueError(
          'a log-likelihood is NaN: the parameters hold NaN or infinities; '
          'score an earlier checkpoint'
        )
      for index in targets[target]:
        scores[index] = score
      count += len(targets[target])
  return count
