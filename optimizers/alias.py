"""Optimizers as plain Optax transforms, for any training loop."""

from collections.abc import Callable
import inspect
from types import MappingProxyType
from typing import Any, NamedTuple
import warnings

import jax
from jax import numpy as jnp
import optax

from steepest.optimizers.build import DECAY_MODES, Chain
from steepest.optimizers.optimizer import Optimizer


class AliasState(NamedTuple):
  """Number of updates so far, and the optimizer's own state."""

  steps: jax.Array
  inner: Any


class _PlainFactors(NamedTuple):
  """Factors of a parameter without a parametrization: all 1."""

  kind: str
  decay: Any
  lr: float = 1.0
  spectral: float = 1.0
  norm: float = 1.0
  rho: float = 1.0
  eps: float = 1.0
  layers: int = 0


class _Leaf:
  """Keeps JAX from flattening factors."""

  def __init__(self, factors: _PlainFactors):
    vars(self).update(factors._asdict())


_DECAYS = MappingProxyType(dict.fromkeys(DECAY_MODES, 1.0))
_STAYS = MappingProxyType(dict.fromkeys(DECAY_MODES, 0.0))


def alias(
  optimizer: Optimizer,
) -> Callable[..., optax.GradientTransformationExtraArgs]:
  """Returns NAME(learning_rate, *, …), as users of Optax expect.

  Its keyword arguments are the optimizer's hyperparameters with their defaults,
  and

    cautious: decay weights only where u·θ ≥ 0 (arXiv 2510.12402).
    cautious_updates: drop update entries that oppose the gradient (arXiv
      2411.16085).
    mask: which parameters decay: a tree of booleans, or a function of the
      parameters that returns one; None: all, as in optax.adamw.
    steps: number of steps in the run, if the optimizer depends on it.

  `learning_rate` is a number or a schedule; it multiplies the decay too. Leaves
  with two axes are kernels (fan_in, fan_out); leaves with more are stacks of
  kernels, one per layer. If the optimizer only moves matrices, AdamW moves the
  other leaves, with the `auxiliary_…` arguments. `update` needs the parameters;
  Sophia's also takes `curvature=`, a tree that is folded into the average
  before the step.

  Args:
    optimizer: the `OPTIMIZER` of a file.
  """
  defaults = {
    name: hyper.default
    for name, hyper in optimizer.hyperparameters.items()
    if name != 'lr'
  }
  switches: dict[str, Any] = {
    'cautious': False,
    'cautious_updates': False,
    'mask': None,
  }
  if optimizer.depends_on_steps:
    switches['steps'] = inspect.Parameter.empty
  keyword = inspect.Parameter.KEYWORD_ONLY
  signature = inspect.Signature(
    [
      inspect.Parameter(
        'learning_rate', inspect.Parameter.POSITIONAL_OR_KEYWORD
      ),
      *(
        inspect.Parameter(name, keyword, default=value)
        for name, value in {**defaults, **switches}.items()
      ),
    ]
  )

  def make(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return _transformation(optimizer, bound.arguments)

  make.__name__ = make.__qualname__ = optimizer.name
  make.__doc__ = (
    f'{optimizer.label} ({optimizer.reference}) as an Optax transform;\n'
    '  optimizers/alias.py says what its arguments are.'
  )
  vars(make)['__signature__'] = signature
  return make


def _factors(params: Any, mask: Any) -> Any:
  """Returns a tree of factors; leaves with two or more axes are kernels."""
  decays = mask(params) if callable(mask) else mask
  if decays is None:
    decays = jax.tree.map(lambda _: True, params)

  def of(p: Any, decay: bool) -> _Leaf:
    kind = 'hidden' if p.ndim >= 2 else 'gain'
    return _Leaf(_PlainFactors(kind, _DECAYS if decay else _STAYS))

  return jax.tree.map(of, params, decays)


def _transformation(
  optimizer: Optimizer, arguments: dict[str, Any]
) -> optax.GradientTransformationExtraArgs:
  arguments = dict(arguments)
  mask = arguments.pop('mask')
  switches = {
    name: arguments.pop(name) for name in ('cautious', 'cautious_updates')
  }
  arguments['lr'] = arguments.pop('learning_rate')
  arguments.setdefault('steps', 1)
  own = optimizer.hyperparameters
  static = {k: v for k, v in arguments.items() if k in own and own[k].static}
  traced = {k: v for k, v in arguments.items() if k not in static}

  def chain(params: Any) -> Chain:
    return Chain(
      optimizer=optimizer,
      static=static,
      decay_mode='times_lr',
      schedule_kind='constant',
      factors=_factors(params, mask),
      **switches,
    )

  def hypers(count: jax.Array) -> dict[str, Any]:
    at = {k: v(count) if callable(v) else v for k, v in traced.items()}
    # A hyperparameter set to another's name takes that one's value.
    return {k: at[v] if isinstance(v, str) else v for k, v in at.items()}

  def init(params: Any) -> AliasState:
    of = chain(params)
    _warn(of, params)
    return AliasState(jnp.zeros([], jnp.int32), of.init(params))

  def update(
    grads: Any,
    state: AliasState,
    params: Any = None,
    *,
    curvature: Any = None,
    **extra: Any,
  ):
    del extra
    if params is None:
      raise ValueError(f'{optimizer.name}: call update(grads, state, params)')
    of, now = chain(params), hypers(state.steps)
    inner = state.inner
    if curvature is not None:
      if not of.wants_curvature:
        raise ValueError(f'{optimizer.name}: does not use curvature')
      inner = of.update_curvature(inner, curvature, now, state.steps)
    h = of.namespace(now, state.steps, now['lr'])
    _, changes, inner = of.changes(now, h, 1.0, 1.0, (grads, inner, params))
    if optimizer.path is None:
      updates = jax.tree.map(jnp.negative, changes)
    else:
      moved, inner = of.move(inner, params, changes, h)
      updates = jax.tree.map(jnp.subtract, moved, params)
    return updates, AliasState(state.steps + 1, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def _warn(chain: Chain, params: Any) -> None:
  """Warns how the optimizer changes the initial parameters, if concrete."""
  if any(isinstance(p, jax.core.Tracer) for p in jax.tree.leaves(params)):
    return
  if remark := chain.remark(params):
    warnings.warn(f'{chain.optimizer.name}: {remark}', stacklevel=3)
