"""The one chain that all optimizers share.

With u = scale(clip(g)), s_t the schedule, and for each role a factor r on the
learning rate and one on the decay, r' (models/parametrization.py):

  independent    θ ← θ - s_t·(lr·r·u + wd·r'·θ), r' = 1
  times_lr       θ ← θ - s_t·lr·(r·u + wd·r'·θ), r' = 1
  times_role_lr  θ ← θ - s_t·lr·(r·u + wd·r'·θ), r' = r

`independent` is Loshchilov & Hutter's form: its wd is about 1e-4. `times_lr`
is what torch.optim.AdamW and the authors of Lion and Sophia do, at r = 1.
`times_role_lr` is the naive form, under which decay fades as models grow.
Gains and biases have r' = 0.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import importlib
import pkgutil
from typing import Any, NamedTuple, Protocol

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from steepest import optimizers
from steepest.optimizers import schedules
from steepest.optimizers.hyperparameters import Hyperparameters

DECAY_MODES = ('independent', 'times_lr', 'times_role_lr')


class Arguments(NamedTuple):
  """What may change between runs of one compiled step; float32 scalars."""

  lr: Any
  b1: Any
  b2: Any
  eps: Any
  rho: Any
  weight_decay: Any
  clip_norm: Any
  hessian_every: Any
  steps: Any
  warmup_steps: Any
  final_fraction: Any
  decay_fraction: Any


class Factors(Protocol):
  """A parameter's factors; models/parametrization.py has them."""

  lr: float
  rho: float
  eps: float
  decay: Mapping[str, float]
  kind: str


def arguments(
  optimizer: ConfigDict, schedule: ConfigDict, steps: int
) -> Arguments:
  """Returns the swept hyperparameters of a run.

  Raises:
    ValueError: a value is out of its range.
  """
  betas = optimizer.betas
  if len(betas) != 2 or not all(isinstance(b, (int, float)) for b in betas):
    raise ValueError(f'optimizer.betas={betas}: give two numbers')
  b1, b2 = betas
  values = {
    'lr': optimizer.lr,
    'b1': b1,
    'b2': b2,
    'eps': optimizer.eps,
    'rho': optimizer.rho,
    'weight_decay': optimizer.weight_decay,
    'clip_norm': optimizer.clip_norm,
    'hessian_every': optimizer.hessian_every,
    'steps': steps,
    'warmup_steps': schedule.warmup_steps,
    'final_fraction': schedule.final_fraction,
    'decay_fraction': schedule.decay_fraction,
  }
  for name, value in values.items():
    if not np.isfinite(value) or value < 0:
      raise ValueError(f'{name}={value}: must be finite and not negative')
  for name in ('b1', 'b2', 'final_fraction', 'decay_fraction'):
    if values[name] > 1 or (values[name] == 1 and name in ('b1', 'b2')):
      raise ValueError(f'{name}={values[name]}: must be below 1')
  if optimizer.hessian_every < 1:
    raise ValueError('optimizer.hessian_every=0: must be at least 1')
  return Arguments(**{k: np.float32(v) for k, v in values.items()})


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
  """clip → scale → role factor and decay → schedule.

  Attributes:
    module: the optimizer's file: `transform` and, where the training step is
      to estimate curvature, `update_curvature`.
    factors: a tree like the parameters.
  """

  module: Any
  decay_mode: str
  schedule_kind: str
  bias_correction: bool
  factors: Any

  @property
  def wants_curvature(self) -> bool:
    return hasattr(self.module, 'update_curvature')

  def init(self, params: Any) -> Any:
    """Returns the optimizer's state; it shards like the parameters."""
    zero = Hyperparameters(0.0, 0.0, 0.0, 0.0, self.bias_correction)
    return self.module.transform(zero).init(params)

  def update(
    self, grads: Any, state: Any, params: Any, step: Any, args: Arguments
  ) -> tuple[Any, Any, dict[str, jax.Array]]:
    """Returns the new parameters, the new state and what to log.

    Args:
      grads: mean gradient of the batch.
      state: from `init` or the last update.
      params: to be updated.
      step: steps done before.
      args: hyperparameters.
    """
    norm = optax.tree.norm(grads)
    clip = jnp.where(
      args.clip_norm > 0,
      args.clip_norm / jnp.maximum(norm, args.clip_norm),
      1.0,
    )
    grads = jax.tree.map(lambda g: g * clip.astype(g.dtype), grads)
    transform = self.module.transform(self._hyperparameters(args))
    updates, state = transform.update(grads, state, params)
    s = schedules.factor(
      self.schedule_kind,
      step,
      args.steps,
      args.warmup_steps,
      args.final_fraction,
      args.decay_fraction,
    )

    def change(u, p, f):
      return s * self._decayed(args, u, p, f)

    changes = jax.tree.map(change, updates, params, self.factors)
    size = sum(p.size for p in jax.tree.leaves(params))
    stats = {
      'lr': s * args.lr,
      'grad_norm': norm,
      'param_norm': optax.tree.norm(params),
      'update_rms': optax.tree.norm(changes) / np.sqrt(size),
    }
    if self.wants_curvature:
      stats |= self._unclipped(updates)
    return jax.tree.map(jnp.subtract, params, changes), state, stats

  def update_curvature(
    self, state: Any, curvature: Any, args: Arguments
  ) -> Any:
    """Folds a curvature estimate into the state."""
    return self.module.update_curvature(state, curvature, args.b2)

  def _unclipped(self, updates: Any) -> dict[str, Any]:
    """Returns the share of coordinates with |u| < 1, in all and by role."""
    totals: dict[str, list[tuple[jax.Array, int]]] = {}
    leaves = zip(
      jax.tree.leaves(updates), jax.tree.leaves(self.factors), strict=True
    )
    for u, f in leaves:
      below = jnp.sum(jnp.abs(u) < 1, dtype=jnp.float32)
      for name in ('unclipped_fraction', f'unclipped_fraction/{f.kind}'):
        totals.setdefault(name, []).append((below, u.size))
    return {
      name: sum(c for c, _ in pairs) / sum(n for _, n in pairs)
      for name, pairs in totals.items()
    }

  def _hyperparameters(self, args: Arguments) -> Hyperparameters:
    return Hyperparameters(
      args.b1,
      args.b2,
      jax.tree.map(lambda f: args.eps * f.eps, self.factors),
      jax.tree.map(lambda f: args.rho * f.rho, self.factors),
      self.bias_correction,
    )

  def _decayed(self, args: Arguments, u: Any, p: Any, f: Factors) -> Any:
    factor = f.decay[self.decay_mode]
    decay = factor * args.weight_decay * p if factor else jnp.zeros_like(p)
    if self.decay_mode == 'independent':
      return args.lr * f.lr * u + decay
    return args.lr * (f.lr * u + decay)


def build(optimizer: ConfigDict, schedule: ConfigDict, factors: Any) -> Chain:
  """Returns the chain of a run.

  Args:
    optimizer: the `optimizer` slice.
    schedule: the `schedule` slice.
    factors: a tree like the parameters, see `Factors`.

  Raises:
    ValueError: a name is unknown.
  """
  for key, value, known in (
    ('optimizer.decay_mode', optimizer.decay_mode, DECAY_MODES),
    ('schedule.kind', schedule.kind, schedules.KINDS),
    (
      'optimizer.hessian_estimator',
      optimizer.hessian_estimator,
      ('gnb', 'hutchinson'),
    ),
  ):
    if value not in known:
      raise ValueError(f'{key}={value!r}: must be one of {", ".join(known)}')
  return Chain(
    module=find(optimizer.name),
    decay_mode=optimizer.decay_mode,
    schedule_kind=schedule.kind,
    bias_correction=optimizer.hessian_bias_correction,
    factors=factors,
  )


def names() -> list[str]:
  """Returns the optimizers there are, in alphabetical order."""
  return [
    info.name
    for info in pkgutil.iter_modules(optimizers.__path__)
    if hasattr(_module(info.name), 'transform')
  ]


def find(name: str) -> Any:
  """Returns the file optimizers/NAME.py.

  Raises:
    ValueError: there is none.
  """
  files = [info.name for info in pkgutil.iter_modules(optimizers.__path__)]
  if name in files and hasattr(module := _module(name), 'transform'):
    return module
  known = names()
  near = difflib.get_close_matches(name, known, 1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  raise ValueError(
    f'optimizer.name={name!r}: {hint}there are {", ".join(known)}'
  )


def _module(name: str) -> Any:
  return importlib.import_module(f'{optimizers.__name__}.{name}')
