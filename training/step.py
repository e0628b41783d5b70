"""The training step: gradient, update, curvature.

B batch, L length, V vocabulary, n micro-batches.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec

from steepest.models.remat import platform
from steepest.optimizers.build import Arguments, Chain
from steepest.training.loss import cross_entropy, with_normalizer

# Kinds of parameters that enter matrix products and nothing else.
_PRODUCTS = ('hidden', 'readout')

# Purposes of random numbers: a key is fold_in(seed, purpose, step).
_PURPOSES = {'init': 0, 'labels': 1, 'probe': 2}


class TrainState(NamedTuple):
  """All that training carries; `step` counts the updates done."""

  step: jax.Array
  params: Any
  opt_state: Any


def key_for(seed: Any, purpose: str, step: Any) -> jax.Array:
  """Returns the random key of a purpose at a step."""
  key = jax.random.fold_in(jax.random.key(seed), _PURPOSES[purpose])
  return jax.random.fold_in(key, step)


def sample(keys_B: jax.Array, logits_BxLxV: jax.Array) -> jax.Array:
  """Returns labels B×L drawn from softmax(logits), a key for each sequence.

  The Gumbel-max trick, as jax.random.categorical: for it, unlike for an
  inverse distribution function, rounding changes a label next to never.
  """
  noise_BxLxV = jax.vmap(
    lambda key: jax.random.gumbel(key, logits_BxLxV.shape[1:])
  )(keys_B)
  score_BxLxV = logits_BxLxV + noise_BxLxV
  if platform() != 'cpu':
    # One reduction, for which no score is written.
    return score_BxLxV.argmax(-1)
  # Two plain reductions take half the time of argmax on a CPU.
  best_BxLx1 = score_BxLxV.max(-1, keepdims=True)
  V = logits_BxLxV.shape[-1]
  index_1x1xV = jnp.arange(V)[None, None]
  return jnp.where(score_BxLxV == best_BxLx1, index_1x1xV, V - 1).min(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """One optimizer step of any model and optimizer.

  Attributes:
    apply: (params, tokens B×L[, segment ids B×L, positions B×L]) → logits
      B×L×V; see models/.
    chain: the optimizer.
    estimator: 'gnb' or 'hutchinson', used if the chain wants curvature.
    microbatches: slices of a batch whose gradients are averaged.
    copies: of the model, along the mesh axis `data`. With micro-batches each
      copy sums its own gradients, and they are reduced over the copies once.
    z_loss: weight of the squared log of the softmax's normalizer, added to
      what is minimised; see `_losses_and_gradient`.
    used: (params) → params as the model's products take them. Rounded here,
      once a step, they get gradients of that dtype, half as many bytes.
    subset: curvature is estimated on one of so many sequences.
  """

  apply: Callable[..., jax.Array]
  chain: Chain
  estimator: str
  microbatches: int
  copies: int = 1
  z_loss: float = 0.0
  used: Callable[[Any], Any] = lambda params: params
  subset: int = 1

  def __call__(
    self,
    state: TrainState,
    batch: dict[str, jax.Array],
    args: Arguments,
    seed: jax.Array,
    measure: jax.Array | None = None,
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the next state and what to log.

    Args:
      state: before the step.
      batch: `inputs` and `targets`, B×L token ids; to keep documents apart,
        `segment_ids` and `positions`. Every target counts, the first token of
        a document after the end of the one before it too.
      args: hyperparameters.
      seed: of the run.
      measure: whether to measure parts.MEASURED; None: always.
    """
    losses, grads = self._losses_and_gradient(state.params, batch)
    params, opt_state, stats = self.chain.update(
      grads, state.opt_state, state.params, state.step, args, measure
    )
    if self.chain.wants_curvature:

      def refresh(opt_state: Any) -> Any:
        # Tied to the parameters: XLA would draw the labels' random numbers,
        # which depend on no branch, at every step.
        step, at = jax.lax.optimization_barrier((state.step, params))
        curvature = self.curvature(at, batch, seed, step)
        return self.chain.update_curvature(opt_state, curvature, args)

      every = args.hessian_every.astype(jnp.int32)
      opt_state = jax.lax.cond(
        state.step % every == every - 1, refresh, lambda s: s, opt_state
      )
    return TrainState(state.step + 1, params, opt_state), {**losses, **stats}

  def gradient(
    self, params: Any, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Any]:
    """Returns the mean loss of the batch, and the gradient to follow."""
    losses, gradient = self._losses_and_gradient(params, batch)
    return losses['train/loss'], gradient

  def _losses_and_gradient(
    self, params: Any, batch: dict[str, jax.Array]
  ) -> tuple[dict[str, jax.Array], Any]:
    """Returns what is logged of the losses, and the gradient of their sum.

    With a z-loss, w·mean((log Σ exp(logits))²) is added to what is minimised
    (Chowdhery et al., arXiv 2204.02311, section 5), and logged apart:
    `train/loss` stays the cross-entropy, which runs are compared by, and so
    does what curvature is estimated of.
    """

    def loss(params: Any, part: dict[str, jax.Array]) -> jax.Array:
      logits_BxLxV = apply_to(self.apply, params, part)
      return cross_entropy(logits_BxLxV, part['targets']).mean()

    def with_z(params: Any, part: dict[str, jax.Array]) -> Any:
      logits_BxLxV = apply_to(self.apply, params, part)
      loss_BxL, normalizer_BxL = with_normalizer(logits_BxLxV, part['targets'])
      loss, z_loss = loss_BxL.mean(), self.z_loss * (normalizer_BxL**2).mean()
      return loss + z_loss, {'train/loss': loss, 'train/z_loss': z_loss}

    params = self.used(params)
    if self.z_loss:
      fn = functools.partial(jax.value_and_grad(with_z, has_aux=True), params)
      (_, losses), gradient = self._mean(fn, batch, self.microbatches)
      return losses, gradient
    fn = functools.partial(jax.value_and_grad(loss), params)
    value, gradient = self._mean(fn, batch, self.microbatches)
    return {'train/loss': value}, gradient

  def curvature(
    self, params: Any, batch: dict[str, jax.Array], seed: Any, step: Any
  ) -> Any:
    """Returns an estimate of the diagonal curvature at `params`.

    Gauss-Newton-Bartlett (arXiv 2305.14342, algorithm 2): labels are sampled
    from the model, the gradient is averaged over all rows used, then squared
    once, times the tokens used. Hutchinson (algorithm 1): a Gaussian probe
    times its product with the Hessian. Neither is clipped. See `_chosen` for
    the rows.
    """
    if self.estimator == 'hutchinson':
      key = key_for(seed, 'probe', step)
      return self._hutchinson(params, self._chosen(batch), key)
    # A key a sequence, of the whole batch: neither mesh nor micro-batches nor
    # a subset change a sequence's labels.
    keys_B = jax.random.split(
      key_for(seed, 'labels', step), batch['inputs'].shape[0]
    )
    batch = self._chosen({**batch, 'keys': keys_B})

    def loss(params: Any, part: dict[str, jax.Array]) -> jax.Array:
      logits_BxLxV = apply_to(self.apply, params, part).astype(jnp.float32)
      labels_BxL = sample(part['keys'], jax.lax.stop_gradient(logits_BxLxV))
      return cross_entropy(logits_BxLxV, labels_BxL).mean()

    fn = functools.partial(jax.grad(loss), self.used(params))
    gradient = self._mean(fn, batch, self._slices)
    tokens = batch['inputs'].size
    square = lambda g: tokens * jnp.square(g.astype(jnp.float32))
    return jax.tree.map(square, gradient)

  def _hutchinson(
    self, params: Any, batch: dict[str, jax.Array], key: jax.Array
  ) -> Any:
    treedef: Any = jax.tree.structure(params)
    keys = treedef.unflatten(jax.random.split(key, treedef.num_leaves))
    probe = jax.tree.map(
      lambda k, p: jax.random.normal(k, p.shape, p.dtype), keys, params
    )

    def product(part: dict[str, jax.Array]) -> Any:
      def loss(params: Any) -> jax.Array:
        logits_BxLxV = apply_to(self.apply, params, part)
        return cross_entropy(logits_BxLxV, part['targets']).mean()

      return jax.jvp(jax.grad(loss), (params,), (probe,))[1]

    hessian_probe = self._mean(product, batch, self._slices)
    return jax.tree.map(jnp.multiply, probe, hessian_probe)

  def _chosen(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns rows 0, n, 2·n, … of a batch: each device keeps some it has."""
    n = self.subset
    if n == 1:
      return batch
    # The rows of a device are a multiple of n: mesh.check_subset.
    return jax.tree.map(
      lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:])[:, 0], batch
    )

  @property
  def _slices(self) -> int:
    """Micro-batches of a curvature estimate.

    As large as those of a gradient where the subset divides their number, else
    smaller by the factor that lacks.
    """
    return self.microbatches // math.gcd(self.microbatches, self.subset)

  def _mean(self, fn: Callable[[Any], Any], batch: Any, n: int) -> Any:
    """Returns the mean of fn(part) over n micro-batches, one at a time."""
    copies = self.copies
    if n == copies == 1:
      return fn(batch)

    # Part i holds rows i, n + i, …: each device keeps the rows it has.
    parts = jax.tree.map(
      lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1),
      batch,
    )
    if copies > 1:
      # An axis for the copies of the model, along which nothing is summed.
      parts = jax.tree.map(
        lambda x: x.reshape(n, copies, -1, *x.shape[2:]), parts
      )
      fn = jax.vmap(fn, spmd_axis_name='data')

    def add(total: Any, part: Any) -> tuple[Any, None]:
      return self._apart(jax.tree.map(jnp.add, total, fn(part))), None

    shapes = jax.eval_shape(fn, jax.tree.map(lambda x: x[0], parts))
    # Sums are in float32, whatever is summed.
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
    total, _ = jax.lax.scan(add, self._apart(zeros), parts)
    if copies > 1:
      total = jax.tree.map(lambda x: x.mean(0), total)
    return jax.tree.map(lambda x: x / n, total)

  def _apart(self, tree: Any) -> Any:
    """Leaves what each copy of the model has, the first axis, with it."""
    if self.copies == 1:
      return tree

    def place(x: jax.Array) -> jax.Array:
      free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
      return jax.lax.with_sharding_constraint(x, PartitionSpec('data', *free))

    return jax.tree.map(place, tree)


def rounded(factors: Any, dtype: Any) -> Callable[[Any], Any]:
  """Returns what rounds the parameters that only enter matrix products.

  Args:
    factors: a tree like the parameters, see `build.Factors`.
    dtype: of the products.
  """
  to_dtype = lambda p, f: p.astype(dtype) if f.kind in _PRODUCTS else p
  return lambda params: jax.tree.map(to_dtype, params, factors)


def apply_to(
  apply: Callable[..., jax.Array], params: Any, batch: dict[str, jax.Array]
) -> jax.Array:
  """Returns a batch's logits B×L×V; documents apart if it says where they are.

  Packed documents give what each alone would: tokens see those of their own
  segment, and positions start anew.
  """
  if 'segment_ids' not in batch:
    return apply(params, batch['inputs'])
  return apply(
    params, batch['inputs'], batch['segment_ids'], batch['positions']
  )


def constrained(
  apply: Callable[..., Any], rules: Any
) -> Callable[..., jax.Array]:
  """Lets the model's logical constraints find their mesh axes."""

  def wrapped(params: Any, *inputs: jax.Array) -> jax.Array:
    with nn.logical_axis_rules(rules):
      return apply({'params': params}, *inputs)

  return wrapped
