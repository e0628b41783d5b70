"""A run's compiled functions: everything but its swept hyperparameters.

Programs of equal key serve many runs, so a learning-rate search compiles once.
"""

from collections.abc import Callable, Mapping
import functools
import time
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import Mesh
import numpy as np

from steepest.models.config import ModelConfig
from steepest.models.parametrization import Parametrization
from steepest.optimizers import parts
from steepest.optimizers.build import Arguments, Chain
from steepest.training import compiler, mesh as mesh_lib
from steepest.training.loss import cross_entropy
from steepest.training.step import (
  Step,
  TrainState,
  apply_to,
  constrained,
  key_for,
  rounded,
)


class Program:
  """Initialisation, training step and evaluation loss on a mesh.

  Attributes:
    model: resolved shapes.
    mesh: of the devices used.
    chain: the optimizer.
    logits: (params, tokens B×L[, segment ids, positions B×L]) → logits
      B×L×V; not compiled.
    state_shapes: ShapeDtypeStructs with shardings, like the state.
    estimator: of the curvature.
    step_function: what `step` compiles.
    compile_seconds: spent on compilation so far.
  """

  def __init__(
    self,
    module: nn.Module,
    rules: Parametrization,
    mesh: Mesh,
    make_chain: Callable[[Any], Chain],
    estimator: str,
    batch_size: int,
    microbatches: int,
    subset: int,
  ):
    self.model: ModelConfig = rules.model
    self.mesh = mesh
    self.batch_size = batch_size
    self.compile_seconds = 0.0
    self._module = module
    mesh_lib.check(mesh, self.model, batch_size, microbatches)
    self._apply: Callable[..., Any] = constrained(module.apply, mesh_lib.RULES)
    self.logits: Callable[..., jax.Array] = self._apply
    boxed = jax.eval_shape(self._init_boxed, 0)
    self.chain = make_chain(
      jax.tree.map(
        lambda p: rules.factors(p.role),
        boxed,
        is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
      )
    )
    self.state_shapes = self._state_shapes(boxed)
    self._shardings = jax.tree.map(lambda s: s.sharding, self.state_shapes)
    self.estimator = estimator
    if self.chain.wants_curvature:
      mesh_lib.check_subset(mesh.shape, batch_size, subset)
    self.step_function = self._step_function(microbatches, subset)
    self._compiled: dict[tuple[str, ...], Any] = {}

  def _step_function(self, microbatches: int, subset: int) -> Step:
    copies = self.mesh.shape['data'] if microbatches > 1 else 1
    rules = mesh_lib.RULES_OF_A_COPY if copies > 1 else mesh_lib.RULES
    return Step(
      constrained(self._module.apply, rules),
      self.chain,
      self.estimator,
      microbatches,
      copies,
      self.model.z_loss,
      rounded(self.chain.factors, self.model.compute_dtype),
      subset,
    )

  def init(self, seed: int) -> TrainState:
    """Returns the state before the first step."""
    fn = lambda seed: self._state(nn.unbox(self._init_boxed(seed)))
    compiled = self._compile(
      ('init',), fn, (np.uint32(seed),), None, self._shardings
    )
    return compiled(jax.device_put(np.uint32(seed), self._whole))

  def from_params(self, params: Any) -> TrainState:
    """Returns the state before the first step from given parameters."""
    # Each process has them all and places its part.
    params = jax.tree.map(_place, params, self._shardings.params)
    with jax.set_mesh(self.mesh):
      return jax.jit(self._state, out_shardings=self._shardings)(params)

  def step(
    self,
    state: TrainState,
    batch: dict[str, jax.Array],
    args: Arguments,
    seed: jax.Array,
    measure: bool = True,
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step; consumes `state`. See training/step.py."""
    compiled = self.compile_step(state, batch, args, seed)
    state, stats = compiled(state, batch, args, seed, self._flags[measure])
    return state, parts.kept(stats, measure)

  def compile_step(
    self,
    state: TrainState,
    batch: Mapping[str, Any],
    args: Arguments,
    seed: jax.Array,
  ) -> Any:
    """Returns the compiled program of `step`; shapes do as arguments."""
    return self._compile(
      ('step', *sorted(batch)),
      self.step_function,
      (state, batch, args, seed, np.bool_(True)),
      (self._shardings, self._batch_shardings(batch), *[self._whole] * 3),
      (self._shardings, self._whole),
      donate=(0,),
    )

  def eval_loss(
    self, params: Any, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the sum over sequences of the mean loss a token, in nats.

    Args:
      params: of the model.
      batch: with `mask`, B: 0 for rows that do not count.

    Returns:
      That sum and the number of sequences that count.
    """

    def fn(params: Any, batch: dict[str, jax.Array]) -> Any:
      logits_BxLxV = apply_to(self.logits, params, batch)
      loss_B = cross_entropy(logits_BxLxV, batch['targets']).mean(-1)
      return (loss_B * batch['mask']).sum(), batch['mask'].sum()

    compiled = self._compile(
      ('eval_loss', *sorted(batch)),
      fn,
      (params, batch),
      (self._shardings.params, self._batch_shardings(batch)),
      self._whole,
    )
    return compiled(params, batch)

  @functools.cached_property
  def local_rows(self) -> list[int]:
    """The rows of a batch that this process places."""
    return mesh_lib.local_rows(self.mesh, self.batch_size)

  def features(
    self,
    params: Any,
    tokens_BxL: jax.Array,
    visible_BxLxL: jax.Array,
    positions_BxL: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns what the readout gets, and the readout; not compiled."""
    return self._apply(params, tokens_BxL, visible_BxLxL, positions_BxL, True)

  def evaluation_params(self, state: TrainState) -> Any:
    """Returns the parameters with which the model is evaluated and saved."""
    if not self.chain.evaluates_others:
      return state.params
    shardings = self._shardings
    compiled = self._compile(
      ('evaluation_params',),
      self.chain.evaluation_params,
      (state.opt_state, state.params),
      (shardings.opt_state, shardings.params),
      shardings.params,
    )
    return compiled(state.opt_state, state.params)

  def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Places this process's rows of a batch, `local_rows`, on the mesh."""
    return {
      name: self._put_rows(batch[name], sharding)
      for name, sharding in self._batch_shardings(batch).items()
    }

  def _put_rows(
    self, rows: np.ndarray, sharding: jax.sharding.NamedSharding
  ) -> jax.Array:
    whole = range(self.batch_size)

    def part(index: Any) -> np.ndarray:
      first = self.local_rows.index(whole[index[0]][0])
      count = len(whole[index[0]])
      return rows[first : first + count][:, *index[1:]]

    shape = (self.batch_size, *rows.shape[1:])
    return jax.make_array_from_callback(shape, sharding, part)

  def _batch_shardings(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    tokens, rows = mesh_lib.batch_shardings(self.mesh)
    return {
      name: tokens if value.ndim == 2 else rows for name, value in batch.items()
    }

  def put(self, tree: Any) -> Any:
    """Places numbers on every device."""
    return jax.device_put(tree, self._whole)

  @functools.cached_property
  def _flags(self) -> tuple[jax.Array, jax.Array]:
    return self.put((np.bool_(False), np.bool_(True)))

  @property
  def _whole(self) -> jax.sharding.NamedSharding:
    return mesh_lib.replicated(self.mesh)

  def _init_boxed(self, seed: Any) -> Any:
    tokens_BxL = jnp.zeros((1, self.model.context), jnp.int32)
    return self._module.init(key_for(seed, 'init', 0), tokens_BxL)['params']

  def _state(self, params: Any) -> TrainState:
    return TrainState(jnp.zeros([], jnp.int32), params, self.chain.init(params))

  def _state_shapes(self, boxed: Any) -> TrainState:
    # Boxes survive zeros_like, so moments get their parameter's axes.
    state = jax.eval_shape(self._state, boxed)
    shardings = mesh_lib.shardings(self.mesh, nn.get_partition_spec(state))
    return jax.tree.map(
      lambda s, sharding: jax.ShapeDtypeStruct(
        s.shape, s.dtype, sharding=sharding
      ),
      nn.unbox(state),
      shardings,
    )

  def _compile(
    self,
    name: tuple[str, ...],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    in_shardings: Any,
    out_shardings: Any,
    donate: tuple[int, ...] = (),
  ) -> Any:
    if name not in self._compiled:
      start = time.perf_counter()
      with jax.set_mesh(self.mesh):
        jitted = jax.jit(
          fn,
          in_shardings=in_shardings or self._whole,
          out_shardings=out_shardings,
          donate_argnums=donate,
        )
        self._compiled[name] = jitted.lower(*args).compile(
          compiler_options=compiler.options(self.mesh, self.model.remat) or None
        )
      self.compile_seconds += time.perf_counter() - start
    return self._compiled[name]


def _place(
  value: np.ndarray, sharding: jax.sharding.NamedSharding
) -> jax.Array:
  return jax.make_array_from_callback(
    value.shape, sharding, lambda index: value[index]
  )
