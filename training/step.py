"""The training step: gradient, update, curvature; and the validation loss.

B batch, L length, V vocabulary, n micro-batches.
"""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from steepest.models.config import ModelConfig
from steepest.models.remat import platform
from steepest.training import mesh as mesh_lib
from steepest.training.loss import cross_entropy, training_loss
from steepest.training.state import Setup, TrainState, constrained, key_for

# Roles of parameters that only enter matrix products.
_PRODUCTS = ('hidden', 'readout')


def train_step(
  setup: Setup,
  state: TrainState,
  batch: Mapping[str, jax.Array],
  hypers: Mapping[str, jax.Array],
  seed: jax.Array,
  measure: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Returns the next state and what to log.

  Args:
    setup: constants of the program.
    state: before the step.
    batch: `inputs` and `targets`, B×L token ids; to keep documents apart, also
      `segment_ids` and `positions`. Every target counts, even a document's
      first token after the end of the previous one.
    hypers: hyperparameters by name, float32 scalars.
    seed: of the run.
    measure: whether to measure role_statistics.MEASURED; None: always.
  """
  chain = setup.chain
  losses, grads = gradient(setup, state.params, batch)
  if setup.mesh.size > 1:
    # Else XLA may all-reduce them if the optimizer's state is split further.
    grads = jax.lax.with_sharding_constraint(grads, setup.shardings.params)
  params, opt_state, stats = chain.update(
    grads, state.opt_state, state.params, state.step, hypers, measure
  )
  if chain.wants_curvature:

    def refresh(opt_state: Any) -> Any:
      # Tied to the parameters: else XLA would draw the labels' random numbers
      # at every step, since they do not depend on the branch.
      step, at = jax.lax.optimization_barrier((state.step, params))
      diagonal = curvature(setup, at, batch, seed, step)
      return chain.update_curvature(opt_state, diagonal, hypers, step)

    every = hypers['hessian_every'].astype(jnp.int32)
    opt_state = jax.lax.cond(
      state.step % every == every - 1, refresh, lambda s: s, opt_state
    )
  return TrainState(state.step + 1, params, opt_state), {**losses, **stats}


def gradient(
  setup: Setup, params: Any, batch: Mapping[str, jax.Array]
) -> tuple[dict[str, jax.Array], Any]:
  """Returns the losses to log, and the mean gradient over micro-batches."""

  def loss(params: Any, part: Mapping[str, jax.Array]) -> Any:
    logits_BxLxV = _logits(setup, params, part)
    return training_loss(logits_BxLxV, part, setup.model.z_loss)

  params = rounded(setup, params)
  fn = functools.partial(jax.value_and_grad(loss, has_aux=True), params)
  (_, losses), grads = _mean(setup, fn, batch, setup.microbatches)
  return losses, grads


def curvature(
  setup: Setup,
  params: Any,
  batch: Mapping[str, jax.Array],
  seed: Any,
  step: Any,
) -> Any:
  """Returns an estimate of the diagonal curvature at `params`.

  Gauss-Newton-Bartlett (arXiv 2305.14342, algorithm 2): samples labels from
  the model, averages the gradient over all rows used, then squares it and
  multiplies by the tokens used. Hutchinson (algorithm 1): a Gaussian probe
  times its product with the Hessian. Neither is clipped. `_chosen` picks the
  rows.
  """
  if setup.estimator == 'hutchinson':
    key = key_for(seed, 'probe', step)
    return _hutchinson(setup, params, _chosen(setup, batch), key)
  # One key per sequence of the whole batch: neither the mesh, micro-batches nor
  # a subset change a sequence's labels.
  keys_B = jax.random.split(
    key_for(seed, 'labels', step), batch['inputs'].shape[0]
  )
  batch = _chosen(setup, {**batch, 'keys': keys_B})

  def loss(params: Any, part: Mapping[str, jax.Array]) -> jax.Array:
    logits_BxLxV = _logits(setup, params, part).astype(jnp.float32)
    labels_BxL = sample(part['keys'], jax.lax.stop_gradient(logits_BxLxV))
    return cross_entropy(logits_BxLxV, labels_BxL).mean()

  fn = functools.partial(jax.grad(loss), rounded(setup, params))
  grads = _mean(setup, fn, batch, _curvature_slices(setup))
  tokens = batch['inputs'].size
  square = lambda g: tokens * jnp.square(g.astype(jnp.float32))
  return jax.tree.map(square, grads)


def sample(keys_B: jax.Array, logits_BxLxV: jax.Array) -> jax.Array:
  """Returns labels B×L drawn from softmax(logits), with one key per sequence.

  Uses the Gumbel-max trick, like jax.random.categorical: unlike with an inverse
  distribution function, rounding hardly ever changes a label.
  """
  noise_BxLxV = jax.vmap(
    lambda key: jax.random.gumbel(key, logits_BxLxV.shape[1:])
  )(keys_B)
  score_BxLxV = logits_BxLxV + noise_BxLxV
  if platform() != 'cpu':
    # One reduction, so scores are never written to memory.
    return score_BxLxV.argmax(-1)
  # Two plain reductions take half the time of argmax on a CPU.
  best_BxLx1 = score_BxLxV.max(-1, keepdims=True)
  V = logits_BxLxV.shape[-1]
  index_1x1xV = jnp.arange(V)[None, None]
  return jnp.where(score_BxLxV == best_BxLx1, index_1x1xV, V - 1).min(-1)


def rounded(setup: Setup, params: Any) -> Any:
  """Rounds the parameters that only enter matrix products.

  Once per step, before the gradient, which then has the same dtype and half
  the bytes.
  """
  dtype = setup.model.compute_dtype
  to_dtype = lambda p, f: p.astype(dtype) if f.kind in _PRODUCTS else p
  return jax.tree.map(to_dtype, params, setup.chain.factors)


def eval_loss(
  setup: Setup, params: Any, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Returns the sum over sequences of the mean loss per token, in nats.

  Args:
    setup: constants of the program.
    params: the model's.
    batch: with `mask`, B: 0 for rows that do not count.

  Returns:
    That sum and the number of sequences that count.
  """
  compiled = _compiled_eval_loss(setup, 'segment_ids' in batch)
  return compiled(params, dict(batch))


def compile_step(
  setup: Setup, hypers: Mapping[str, Any], packed: bool = False
) -> jax.stages.Compiled:
  """Compiles (state, batch, hypers, seed, measure) → (state, stats).

  The program consumes the state. Compiled programs are reused. With JAX's
  debug_nans, compilation waits for the first call, which JAX needs to find the
  operation that produced a NaN.

  Args:
    setup: constants of the program.
    hypers: hyperparameters by name; their values do not matter.
    packed: whether batches have segment ids and positions.
  """
  ahead = not jax.debug_nans.value
  return _compiled_step(setup, tuple(sorted(hypers)), packed, ahead)


@functools.lru_cache(maxsize=2)
def _compiled_step(
  setup: Setup, names: tuple[str, ...], packed: bool, ahead: bool
) -> jax.stages.Compiled:
  batch = mesh_lib.batch_shapes(
    setup.mesh, setup.batch_size, setup.model.context, packed
  )
  whole = mesh_lib.replicated(setup.mesh)
  return mesh_lib.compiled(
    setup.mesh,
    functools.partial(train_step, setup),
    (
      setup.shapes,
      batch,
      dict.fromkeys(names, np.float32(0)),
      np.uint32(0),
      np.bool_(True),
    ),
    (
      setup.shardings,
      {name: s.sharding for name, s in batch.items()},
      *[whole] * 3,
    ),
    (setup.shardings, whole),
    donate=(0,),
    hide=hides(setup.model),
    ahead=ahead,
  )


@functools.lru_cache(maxsize=2)
def _compiled_eval_loss(setup: Setup, packed: bool) -> jax.stages.Compiled:
  batch = mesh_lib.batch_shapes(
    setup.mesh, setup.batch_size, setup.model.context, packed, mask=True
  )

  def fn(params: Any, batch: dict[str, jax.Array]) -> Any:
    logits_BxLxV = _apply(setup.apply, params, batch)
    loss_B = cross_entropy(logits_BxLxV, batch['targets']).mean(-1)
    return (loss_B * batch['mask']).sum(), batch['mask'].sum()

  return mesh_lib.compiled(
    setup.mesh,
    fn,
    (setup.shapes.params, batch),
    (
      setup.shardings.params,
      {name: s.sharding for name, s in batch.items()},
    ),
    mesh_lib.replicated(setup.mesh),
    hide=hides(setup.model),
  )


def hides(model: ModelConfig) -> bool:
  """Returns whether to hide communication, whatever memory that takes.

  If unstacked layers are recomputed, GPUs' latency-hiding scheduler delays so
  much work that it uses up the memory saved; in a loop over layers it cannot
  (docs/scaling.md).
  """
  return model.remat != 'full' or model.scan_layers


def _hutchinson(
  setup: Setup, params: Any, batch: Mapping[str, jax.Array], key: jax.Array
) -> Any:
  treedef: Any = jax.tree.structure(params)
  keys = treedef.unflatten(jax.random.split(key, treedef.num_leaves))
  probe = jax.tree.map(
    lambda k, p: jax.random.normal(k, p.shape, p.dtype), keys, params
  )

  def product(part: Mapping[str, jax.Array]) -> Any:
    def loss(params: Any) -> jax.Array:
      logits_BxLxV = _logits(setup, params, part)
      return cross_entropy(logits_BxLxV, part['targets']).mean()

    return jax.jvp(jax.grad(loss), (params,), (probe,))[1]

  hessian_probe = _mean(setup, product, batch, _curvature_slices(setup))
  return jax.tree.map(jnp.multiply, probe, hessian_probe)


def _chosen(
  setup: Setup, batch: Mapping[str, jax.Array]
) -> Mapping[str, jax.Array]:
  """Returns rows 0, n, 2·n, … of a batch; each device keeps some of its own."""
  n = setup.subset
  if n == 1:
    return batch
  # Each device's number of rows is a multiple of n (mesh.check_subset).
  return jax.tree.map(
    lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:])[:, 0], batch
  )


def _curvature_slices(setup: Setup) -> int:
  """Returns the number of micro-batches of a curvature estimate.

  If the subset divides the gradient's number of micro-batches, they are as
  large as the gradient's.
  """
  return setup.microbatches // math.gcd(setup.microbatches, setup.subset)


def _mean(setup: Setup, fn: Callable[[Any], Any], batch: Any, n: int) -> Any:
  """Returns the mean of fn(part) over n micro-batches, in sequence.

  Each copy of the model along the mesh axis `data` sums its own gradients; one
  reduction over the copies follows.
  """
  copies = _copies(setup)
  if n == copies == 1:
    return fn(batch)

  # Part i holds rows i, n + i, …: each device keeps the rows it has.
  parts = jax.tree.map(
    lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1),
    batch,
  )
  if copies > 1:
    # A separate axis for the copies of the model; nothing is summed along it.
    parts = jax.tree.map(
      lambda x: x.reshape(n, copies, -1, *x.shape[2:]), parts
    )
    fn = jax.vmap(fn, spmd_axis_name='data')

  def add(total: Any, part: Any) -> tuple[Any, None]:
    return _by_copy(jax.tree.map(jnp.add, total, fn(part)), copies), None

  shapes = jax.eval_shape(fn, jax.tree.map(lambda x: x[0], parts))
  # Sum in float32, whatever the dtype of the terms.
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
  total, _ = jax.lax.scan(add, _by_copy(zeros, copies), parts)
  if copies > 1:
    total = jax.tree.map(lambda x: x.mean(0), total)
  return jax.tree.map(lambda x: x / n, total)


def _by_copy(tree: Any, copies: int) -> Any:
  """Keeps entry i of each array's first axis on copy i of the model."""
  if copies == 1:
    return tree

  def place(x: jax.Array) -> jax.Array:
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec('data', *free))

  return jax.tree.map(place, tree)


def _copies(setup: Setup) -> int:
  """Returns how many copies of the model sum their gradients separately."""
  return setup.mesh.shape['data'] if setup.microbatches > 1 else 1


def _logits(
  setup: Setup, params: Any, batch: Mapping[str, jax.Array]
) -> jax.Array:
  """Returns a batch's logits B×L×V, inside `_mean`."""
  alone = _copies(setup) > 1
  rules = mesh_lib.RULES_OF_A_COPY if alone else mesh_lib.RULES
  return _apply(constrained(setup.module.apply, rules), params, batch)


def _apply(
  apply: Callable[..., jax.Array], params: Any, batch: Mapping[str, jax.Array]
) -> jax.Array:
  """Returns a batch's logits B×L×V; segment ids keep documents apart.

  Each packed document then gets the same logits as alone: tokens only see their
  own segment, and positions restart.
  """
  if 'segment_ids' not in batch:
    return apply(params, batch['inputs'])
  return apply(
    params, batch['inputs'], batch['segment_ids'], batch['positions']
  )
