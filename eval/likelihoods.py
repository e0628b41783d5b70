"""Log-likelihoods of continuations, in batches of few shapes.

B rows of a batch, L tokens of a row, D features, V vocabulary, S shards of the
rows, N tokens of a shard, P points of a shard, K points whose logits are
computed at a time.

packing.py assigns tokens to rows. Logits are computed only at the points where
a request is scored: with a large vocabulary the others would be much of the
work and most of the memory.
"""

import collections
from collections.abc import (
  Callable,
  Generator,
  Iterable,
  Iterator,
  Sequence,
)
from concurrent import futures
import contextlib
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from steepest.eval import packing, requests as requests_lib

# Tokens per batch on each device.
_TOKENS = 2**14
_TOKENS_CPU = 2**10
# Bytes of float32 logits at a time on each device; CPUs are fastest if they
# stay in the caches.
_LOGITS_BYTES = 2**28
_LOGITS_BYTES_CPU = 2**24
_FEWEST_POINTS = 16
# Batches packed ahead of the device, and batches sent to it but not awaited.
_AHEAD = 4
_FLYING = 2

# (params, tokens B×L, visible B×L×L, positions B×L) → the two factors of the
# logits: the readout's input, B×L×D, and the readout, V×D. A token sees itself
# and those earlier tokens in its row that `visible` allows.
Features = Callable[
  [Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]
]
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Score:
  """Sum of log-probabilities, in nats, and whether every token was argmax."""

  loglikelihood: float
  is_greedy: bool


class ScoreFn:
  """Scores requests of a causal language model.

  Parameters are an argument of the compiled program, so a model in training can
  be scored repeatedly without recompiling.

  Attributes:
    compilations: programs compiled so far.
  """

  def __init__(self, features_fn: Features, mesh: Mesh | None = None):
    """Makes the scorer.

    Args:
      features_fn: pure function; see Features.
      mesh: rows are split over its axes `data` and `fsdp`, logits over
        `tensor`; None: one device.
    """
    self._features_fn = features_fn
    self._mesh = mesh
    self.compilations = 0
    self._vocab_size = 0  # Read off the first parameters.
    self._ways: dict[str, int] = {} if mesh is None else dict(mesh.shape)
    self._row_axes = tuple(a for a in ('data', 'fsdp') if a in self._ways)
    self._shards = math.prod(self._ways[axis] for axis in self._row_axes)
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    self._apply = jax.jit(self._score, static_argnums=(3,), out_shardings=whole)

  def __call__(
    self,
    params: Any,
    requests: Sequence[requests_lib.Request],
    max_length: int,
    progress: Progress | None = None,
  ) -> list[Score]:
    """Scores `requests`.

    Args:
      params: first argument of the features function.
      requests: what to score, in any order; they are read while the first ones
        are being scored.
      max_length: the model's longest input; longer ones lose their start.
      progress: called with the numbers of requests done and in all.

    Returns:
      A score for each request, in order.

    Raises:
      ValueError: a continuation exceeds `max_length`, or a result is NaN.
    """
    numbers: list[int] = []
    found: dict[int, Score] = {}
    packer, at_once = self._packer(params, max_length)
    targets = _distinct(requests, max_length, numbers)
    made = packer.batches(packing.chunks(targets))
    # Batches sent but not awaited: one is computed while the next is packed.
    flying: collections.deque[tuple[packing.Batch, Any]] = collections.deque()
    done = 0
    with contextlib.ExitStack() as stack:
      if self._mesh is not None:
        stack.enter_context(jax.set_mesh(self._mesh))
      batches = stack.enter_context(contextlib.closing(_ahead(made)))
      while True:
        batch = next(batches, None)
        if batch is not None:
          count = np.int32(-(-batch.points // at_once))
          outputs = self._apply(
            params, self._place(batch.arrays), count, at_once
          )
          flying.append((batch, outputs))
        if len(flying) > _FLYING or (flying and batch is None):
          done += _collect(*flying.popleft(), found)
          if progress is not None:
            progress(done, len(requests))
        elif batch is None:
          if progress is not None:
            progress(len(requests), len(requests))
          return [found[number] for number in numbers]

  def _packer(self, params: Any, max_length: int) -> tuple[packing.Packer, int]:
    """Returns the packer, and the number of points computed at a time."""
    if not self._vocab_size:
      row = jax.ShapeDtypeStruct((self._shards, max_length), jnp.int32)
      visible = jax.ShapeDtypeStruct((*row.shape, max_length), jnp.bool_)
      _, readout_VxD = jax.eval_shape(
        self._features_fn, params, row, visible, row
      )
      self._vocab_size = readout_VxD.shape[0]
    on_cpu = _platform(self._mesh) == 'cpu'
    logits_bytes = _LOGITS_BYTES_CPU if on_cpu else _LOGITS_BYTES
    tokens = _TOKENS_CPU if on_cpu else _TOKENS
    points = logits_bytes // (4 * self._vocab_size)
    at_once = min(max(points, _FEWEST_POINTS), tokens)
    multiple = self._ways['sequence'] if 'sequence' in self._ways else 1
    lengths = packing.row_lengths(max_length, multiple)
    return packing.Packer(lengths, tokens, self._shards, at_once), at_once

  def _place(self, arrays: Sequence[np.ndarray]) -> list[jax.Array]:
    """Puts a batch on the devices; each process sends only its own slices."""
    if self._mesh is None:
      return [jax.device_put(array) for array in arrays]
    sharding = NamedSharding(self._mesh, PartitionSpec(self._row_axes or None))
    return [
      jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
      for array in arrays
    ]

  def _score(
    self, params: Any, arrays: list[jax.Array], count: jax.Array, at_once: int
  ) -> tuple[jax.Array, jax.Array]:
    """Returns log-probabilities and whether they are the highest, S×P each.

    Args:
      params: the model's.
      arrays: those of a `packing.Batch`.
      count: number of portions of points to compute; the others stay 0.
      at_once: points per portion, K.
    """
    self.compilations += 1  # This body runs only when JAX traces it.
    tokens_BxL, positions_BxL, trees_BxL, branches_BxL = arrays[:4]
    places_SxP, targets_SxP = arrays[4:]
    S = places_SxP.shape[0]
    x_BxLxD, readout_VxD = self._features_fn(
      params, tokens_BxL, _visible(trees_BxL, branches_BxL), positions_BxL
    )
    # Done before the loop, which would gather it for every portion.
    readout_VxD = self._constrain(readout_VxD, 'tensor')
    x_SxNxD = x_BxLxD.reshape(S, -1, x_BxLxD.shape[-1])
    x_SxNxD = self._constrain(x_SxNxD, self._row_axes)

    def portion(i: jax.Array, outputs: Any) -> Any:
      cut = lambda of_SxP: jax.lax.dynamic_slice_in_dim(
        of_SxP, i * at_once, at_once, axis=1
      )
      x_SxKxD = jnp.take_along_axis(x_SxNxD, cut(places_SxP)[..., None], axis=1)
      logp_SxK, hit_SxK = _look_up(x_SxKxD, readout_VxD, cut(targets_SxP))
      return tuple(
        jax.lax.dynamic_update_slice_in_dim(whole, part, i * at_once, axis=1)
        for whole, part in zip(outputs, (logp_SxK, hit_SxK))
      )

    empty = (
      jnp.zeros(places_SxP.shape, jnp.float32),
      jnp.zeros(places_SxP.shape, jnp.bool_),
    )
    return jax.lax.fori_loop(0, count, portion, empty)

  def _constrain(self, x: jax.Array, axes: str | tuple[str, ...]) -> jax.Array:
    """Splits the first dimension over mesh axes, and no other."""
    if self._mesh is None:
      return x
    names = (axes,) if isinstance(axes, str) else axes
    spec = PartitionSpec(tuple(a for a in names if a in self._ways) or None)
    return jax.lax.with_sharding_constraint(x, NamedSharding(self._mesh, spec))


def _visible(trees_BxL: jax.Array, branches_BxL: jax.Array) -> jax.Array:
  """Returns which token may see which, B×L×L, apart from causality."""
  of_one_tree = trees_BxL[:, :, None] == trees_BxL[:, None]
  of_one_branch = branches_BxL[:, :, None] == branches_BxL[:, None]
  return of_one_tree & (of_one_branch | (branches_BxL[:, None] == 0))


def _look_up(
  x_SxKxD: jax.Array, readout_VxD: jax.Array, targets_SxK: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns log p of the targets, in float32, and whether they are argmax.

  Among equal logits the lowest index is the argmax.
  """
  S, K, D = x_SxKxD.shape
  logits_SxKxV = jnp.matmul(
    x_SxKxD.reshape(S * K, D),
    readout_VxD.astype(x_SxKxD.dtype).T,
    preferred_element_type=jnp.float32,
  ).reshape(S, K, -1)
  chosen_SxKx1 = jnp.take_along_axis(logits_SxKxV, targets_SxK[..., None], -1)
  logp_SxK = chosen_SxKx1[..., 0] - jax.nn.logsumexp(logits_SxKxV, axis=-1)
  index_1x1xV = jnp.arange(logits_SxKxV.shape[-1])[None, None]
  before_SxKxV = index_1x1xV < targets_SxK[..., None]
  beaten_SxKxV = (logits_SxKxV > chosen_SxKx1) | (
    before_SxKxV & (logits_SxKxV == chosen_SxKx1)
  )
  return logp_SxK, ~beaten_SxKxV.any(-1)


def _platform(mesh: Mesh | None) -> str:
  return (
    jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  )


def _distinct(
  requests: Iterable[requests_lib.Request],
  max_length: int,
  numbers: list[int],
) -> Iterator[tuple[int, packing.Target]]:
  """Yields each distinct target with its number.

  Writes the number of each request's target into `numbers`.
  """
  known: dict[packing.Target, int] = {}
  for request in requests:
    target = requests_lib.truncate(request, max_length)
    new = target not in known
    number = known.setdefault(target, len(known))
    numbers.append(number)
    if new:
      yield number, target


def _ahead(
  batches: Iterator[packing.Batch],
) -> Generator[packing.Batch, None, None]:
  """Packs batches in a thread while the device computes others."""
  with futures.ThreadPoolExecutor(1, 'packing') as pool:
    take = lambda: pool.submit(next, batches, None)
    made = collections.deque(take() for _ in range(_AHEAD))
    while (batch := made.popleft().result()) is not None:
      made.append(take())
      yield batch


def _collect(
  batch: packing.Batch,
  outputs: tuple[jax.Array, jax.Array],
  found: dict[int, Score],
) -> int:
  """Writes a batch's results into `found`; returns how many."""
  logp_SxP, hit_SxP = jax.device_get(outputs)
  for shard, first, count, number in batch.owners:
    part = slice(first, first + count)
    loglikelihood = float(logp_SxP[shard, part].sum(dtype=np.float64))
    if math.isnan(loglikelihood):
      raise ValueError(
        'a log-likelihood is NaN: the parameters contain NaN or infinity; '
        'score an earlier checkpoint'
      )
    found[number] = Score(loglikelihood, bool(hit_SxP[shard, part].all()))
  return len(batch.owners)
