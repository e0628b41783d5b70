"""A run's state from step to step, and the constants of its programs.

B batch, L length, V vocabulary.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

from flax import errors, linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict
import numpy as np

from steepest.models import config as model_config, layers
from steepest.models.config import ModelConfig
from steepest.models.parametrization import Factors, Parametrization
from steepest.optimizers import build
from steepest.optimizers.build import Chain
from steepest.training import mesh as mesh_lib

# Uses of random numbers: a key is fold_in(seed, purpose, step).
_PURPOSES = {'init': 0, 'labels': 1, 'probe': 2}


class TrainState(NamedTuple):
  """The whole training state; `step` counts the updates done."""

  step: jax.Array
  params: Any
  opt_state: Any


@dataclasses.dataclass(frozen=True)
class Spec:
  """All that determines compilation: runs with equal specs share programs.

  Attributes:
    rules: the model's shapes and multipliers.
    optimizer: the `optimizer` slice without what a sweep may change.
    schedule: the `schedule` slice, likewise.
    mesh: the `mesh` slice.
    batch_size: sequences per step.
    microbatches: slices of a batch.
  """

  rules: Parametrization
  optimizer: FrozenConfigDict
  schedule: FrozenConfigDict
  mesh: FrozenConfigDict
  batch_size: int
  microbatches: int


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
  """Constants of a run's compiled programs.

  Attributes:
    module: the model; see models/.
    model: its resolved shapes.
    chain: the optimizer.
    mesh: the mesh of the devices used.
    shapes: ShapeDtypeStructs with shardings, like the state.
    batch_size: sequences per step.
    microbatches: slices of a batch whose gradients are averaged.
    estimator: 'gnb' or 'hutchinson', used if the chain wants curvature.
    subset: curvature is estimated on one in `subset` sequences.
    spec: what it was made from.
  """

  module: Any
  model: ModelConfig
  chain: Chain
  mesh: Mesh
  shapes: TrainState
  batch_size: int
  microbatches: int = 1
  estimator: str = 'gnb'
  subset: int = 1
  spec: Spec | None = None

  @property
  def shardings(self) -> TrainState:
    """Shardings like the state."""
    return jax.tree.map(lambda s: s.sharding, self.shapes)

  def apply(self, params: Any, *inputs: Any) -> Any:
    """Applies the model; see models/gpt2.py for the inputs. Not compiled."""
    return constrained(self.module.apply, mesh_lib.RULES)(params, *inputs)

  def features(
    self,
    params: Any,
    tokens_BxL: jax.Array,
    visible_BxLxL: jax.Array,
    positions_BxL: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the readout's input, and the readout; not compiled."""
    return self.apply(params, tokens_BxL, visible_BxLxL, positions_BxL, True)


# A plan needs the shapes of many runs, most with the same shapes.
@functools.lru_cache(maxsize=64)
def setup(
  spec: Spec,
  devices: tuple[jax.Device, ...] = (),
  mesh: Any = None,
) -> Setup:
  """Returns the constants of a run's programs; compiles nothing yet.

  Cached, so that the next run of the same shape reuses compiled programs.

  Args:
    spec: the run's.
    devices: to use; (): all of this job's.
    mesh: replaces theirs, such as a jax.sharding.AbstractMesh when only shapes
      are needed.

  Raises:
    ValueError: a name is unknown, or a size does not divide.
  """
  model, o = spec.rules.model, spec.optimizer
  if mesh is None:
    mesh = mesh_lib.make_mesh(spec.mesh, list(devices) or None)
  mesh_lib.check(mesh, model, spec.batch_size, spec.microbatches)
  module = model_config.find_model(model.name).Model(model, spec.rules)
  boxed = _boxed_shapes(module, model)
  factors = _map_boxes(lambda _, p: _factors(spec.rules, p), boxed)
  over_data = spec.mesh.shard_optimizer_over_data
  # Of momenta.
  layout = jax.tree.map(
    lambda s, p: (mesh_lib.over_data(s, p.shape) if over_data else s).spec,
    mesh_lib.shardings(mesh, nn.get_partition_spec(boxed)),
    nn.unbox(boxed),
  )
  chain = build.build(o, spec.schedule, factors, layout)
  shapes = _shapes(chain, mesh, boxed, over_data)
  layout = jax.tree.map(lambda s: s.sharding.spec, shapes.opt_state)
  chain = dataclasses.replace(chain, state_layout=layout)
  made = Setup(
    module,
    model,
    chain,
    mesh,
    shapes,
    spec.batch_size,
    spec.microbatches,
    spec=spec,
  )
  if not chain.wants_curvature:
    return made
  subset = chain.static['hessian_subset']
  mesh_lib.check_subset(mesh.shape, spec.batch_size, subset)
  return dataclasses.replace(
    made, estimator=chain.static['hessian_estimator'], subset=subset
  )


def init(setup: Setup, seed: int) -> TrainState:
  """Returns the state before the first step."""
  return _compiled_init(setup)(mesh_lib.replicate(setup.mesh, np.uint32(seed)))


def from_params(setup: Setup, params: Any) -> TrainState:
  """Returns the state before the first step, with given parameters."""

  def place(value: np.ndarray, sharding: jax.sharding.NamedSharding):
    return jax.make_array_from_callback(
      value.shape, sharding, lambda index: value[index]
    )

  if setup.model.scan_layers:
    params = layers.stack(params)
  # Each process has all parameters and places its part.
  params = jax.tree.map(place, params, setup.shardings.params)
  first = functools.partial(_first, setup.chain)
  with jax.set_mesh(setup.mesh):
    return jax.jit(first, out_shardings=setup.shardings)(params)


def evaluation_params(setup: Setup, state: TrainState) -> Any:
  """Returns the parameters to evaluate and save."""
  if not setup.chain.evaluates_others:
    return state.params
  return _compiled_evaluation_params(setup)(state.opt_state, state.params)


def key_for(seed: Any, purpose: str, step: Any) -> jax.Array:
  """Returns the random key for a purpose at a step."""
  key = jax.random.fold_in(jax.random.key(seed), _PURPOSES[purpose])
  return jax.random.fold_in(key, step)


def constrained(
  apply: Callable[..., Any], rules: Any
) -> Callable[..., jax.Array]:
  """Maps the model's logical sharding constraints to mesh axes."""

  def wrapped(params: Any, *inputs: jax.Array) -> jax.Array:
    with nn.logical_axis_rules(rules):
      return apply({'params': params}, *inputs)

  return wrapped


@functools.lru_cache(maxsize=2)
def _compiled_init(setup: Setup) -> Any:
  def fn(seed: Any) -> TrainState:
    boxed = init_params(setup.module, setup.model, seed)
    return _first(setup.chain, nn.unbox(boxed))

  return mesh_lib.compiled(
    setup.mesh, fn, (np.uint32(0),), None, setup.shardings
  )


@functools.lru_cache(maxsize=2)
def _compiled_evaluation_params(setup: Setup) -> Any:
  of = setup.shardings
  return mesh_lib.compiled(
    setup.mesh,
    setup.chain.evaluation_params,
    (setup.shapes.opt_state, setup.shapes.params),
    (of.opt_state, of.params),
    of.params,
  )


@functools.lru_cache(maxsize=64)
def _boxed_shapes(module: Any, model: ModelConfig) -> Any:
  """Returns the parameters' shapes, which all optimizers share.

  Raises:
    ValueError: layers are to be stacked, but the model has its own loop.
  """
  with layers.first_block_only() as left_out:
    shapes = jax.eval_shape(lambda: _init(module, model, 0))
  shapes |= {f'block_{i}': shapes['block_0'] for i in left_out}
  if model.scan_layers:
    shapes = jax.eval_shape(layers.stack, shapes)
    tokens_BxL = jnp.zeros((1, model.context), jnp.int32)
    try:
      jax.eval_shape(module.apply, {'params': nn.unbox(shapes)}, tokens_BxL)
    except errors.ScopeParamNotFoundError as error:
      raise ValueError(
        f'model.scan_layers=True: model.name={model.name} runs its blocks in '
        'its own loop; use layers.blocks of models/layers.py for stacks'
      ) from error
  return shapes


def init_params(module: Any, model: ModelConfig, seed: Any) -> Any:
  """Returns a model's initial parameters in boxes that name their axes.

  Stacking layers does not change the values.
  """
  params = _init(module, model, seed)
  return layers.stack(params) if model.scan_layers else params


def _init(module: Any, model: ModelConfig, seed: Any) -> dict[str, Any]:
  tokens_BxL = jnp.zeros((1, model.context), jnp.int32)
  return module.init(key_for(seed, 'init', 0), tokens_BxL)['params']


def other_form(of: Setup) -> Setup:
  """Returns the setup with layers stacked if they are not, else unstacked.

  See model.scan_layers.
  """
  assert of.spec is not None
  rules = of.spec.rules
  stacked = not rules.model.scan_layers
  model = dataclasses.replace(rules.model, scan_layers=stacked)
  rules = dataclasses.replace(rules, model=model)
  return setup(dataclasses.replace(of.spec, rules=rules), mesh=of.mesh)


def restack(setup: Setup, state: TrainState) -> TrainState:
  """Returns a state of `other_form(setup)` in the form of `setup`.

  Memory must have room for both.

  Raises:
    ValueError: the optimizer's per-layer state is not in a box, which would
      name the parameter (optimizers/trees.py).
  """
  other = other_form(setup)
  before, after = _origins(other), _origins(setup)
  one_of = lambda path, i: path.replace(layers.STACKED, f'block_{i}', 1)
  is_stack = lambda path: path.startswith(layers.STACKED)

  def fn(state: TrainState) -> TrainState:
    held: dict[str, list[jax.Array]] = {}
    for path, x in zip(before, jax.tree.leaves(state), strict=True):
      held.setdefault(path, []).append(x)
    for path in {*filter(is_stack, (*before, *after))}:
      ones = [one_of(path, i) for i in range(setup.model.num_layers)]
      if path in held:
        held |= {p: [x[i] for x in held[path]] for i, p in enumerate(ones)}
      else:
        parts = zip(*(held[p] for p in ones), strict=True)
        held[path] = [jnp.stack(xs) for xs in parts]
    found = [held[path].pop(0) for path in after]
    return jax.tree.unflatten(jax.tree.structure(setup.shapes), found)

  loose = [
    [x.shape for x, path in zip(jax.tree.leaves(of.shapes), paths) if not path]
    for of, paths in ((other, before), (setup, after))
  ]
  if loose[0] != loose[1]:
    raise ValueError(
      f'optimizer.name={setup.chain.optimizer.name}: its state cannot be '
      'restacked: set model.scan_layers as it was'
    )
  return mesh_lib.compiled(
    setup.mesh, fn, (other.shapes,), (other.shardings,), setup.shardings
  )(state)


def _origins(setup: Setup) -> list[str]:
  """Returns the parameter's path for each array of the state.

  '' for arrays without a box.
  """
  boxed = _boxed_shapes(setup.module, setup.model)
  named = _map_boxes(lambda path, p: p.replace(role=path), boxed)
  state = jax.eval_shape(functools.partial(_first, setup.chain), named)
  return [
    x.role if _is_box(x) else ''
    for x in jax.tree.leaves(state, is_leaf=_is_box)
  ]


def _map_boxes(fn: Callable[[str, Any], Any], boxed: Any) -> Any:
  """Returns a tree of fn(path, box)."""
  keystr = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
  return jax.tree_util.tree_map_with_path(
    lambda path, p: fn(keystr(path), p), boxed, is_leaf=_is_box
  )


def _is_box(x: Any) -> bool:
  return isinstance(x, nn.LogicallyPartitioned)


def _factors(rules: Parametrization, parameter: Any) -> Factors:
  stacked = parameter.names[:1] == ('layers',)
  return dataclasses.replace(
    rules.factors(parameter.role),
    layers=parameter.value.shape[0] if stacked else 0,
  )


def _first(chain: Chain, params: Any) -> TrainState:
  return TrainState(jnp.zeros([], jnp.int32), params, chain.init(params))


def _shapes(
  chain: Chain, mesh: Mesh, boxed: Any, over_data: bool
) -> TrainState:
  # Boxes survive zeros_like, so moments get their parameter's axes.
  state = jax.eval_shape(functools.partial(_first, chain), boxed)
  shardings = mesh_lib.shardings(mesh, nn.get_partition_spec(state))
  shapes = jax.tree.map(
    lambda s, sharding: jax.ShapeDtypeStruct(
      s.shape, s.dtype, sharding=mesh_lib.even(sharding, s.shape)
    ),
    nn.unbox(state),
    shardings,
  )
  if not over_data:
    return shapes
  split = lambda s: s.update(sharding=mesh_lib.over_data(s.sharding, s.shape))
  return shapes._replace(opt_state=jax.tree.map(split, shapes.opt_state))
