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

An optimizer's file has `transform(hyperparameters)`, which makes the direction
u, and `scale_by_NAME` behind it. It may have

  DEPENDS_ON_STEPS    its first steps depend on how many there are
  SCHEDULE            kind of the schedule, whatever the run's is
  RATES               role's kind → which of its factors is r, if not `lr`
  READ_ONLY           fields of the state that an update does not write
  move                what becomes of parameters and state, given the changes
  evaluation_params   with which parameters the model is evaluated
  update_curvature    takes curvature that the training step estimates
  statistics          what of its state is logged
  method              name of what moves a parameter of a kind and shape
  update_flops        of the matrix products that this takes
"""

import collections
from collections.abc import Callable, Mapping
import dataclasses
import difflib
import functools
import importlib
import pkgutil
from typing import Any, Protocol

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict
import numpy as np
import optax

from steepest import optimizers
from steepest.optimizers import parts, schedules
from steepest.optimizers.hyperparameters import Hyperparameters

_DECAY_RATES = ('b1', 'b2', 'b3', 'momentum')
# Keys of a configuration whose values are arguments of the compiled step.
_SWEPT = (
  *('lr', 'betas', 'eps', 'weight_decay', 'clip_norm'),
  *('rho', 'hessian_every', 'b3', 'alpha', 'momentum', 'precondition_every'),
  *('warmup_steps', 'final_fraction', 'decay_fraction'),
)
DECAY_MODES = ('independent', 'times_lr', 'times_role_lr')


class Factors(Protocol):
  """A parameter's factors; models/parametrization.py has them."""

  lr: float
  spectral: float
  rho: float
  eps: float
  decay: Mapping[str, float]
  kind: str


def static(slice: ConfigDict) -> FrozenConfigDict:
  """Returns the `optimizer` or `schedule` slice without what is swept."""
  return FrozenConfigDict(
    {key: value for key, value in slice.items() if key not in _SWEPT}
  )


def hyperparameters(
  optimizer: ConfigDict, schedule: ConfigDict, steps: int
) -> dict[str, np.float32]:
  """Returns what may change between runs of one compiled step, by name.

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
    'b3': optimizer.b3,
    'alpha': optimizer.alpha,
    'momentum': optimizer.momentum,
    'weight_decay': optimizer.weight_decay,
    'clip_norm': optimizer.clip_norm,
    'hessian_every': optimizer.hessian_every,
    'precondition_every': optimizer.precondition_every,
    'steps': steps,
    'warmup_steps': schedule.warmup_steps,
    'final_fraction': schedule.final_fraction,
    'decay_fraction': schedule.decay_fraction,
  }
  for name, value in values.items():
    if not np.isfinite(value) or value < 0:
      raise ValueError(f'{name}={value}: must be finite and not negative')
  for name in (*_DECAY_RATES, 'final_fraction', 'decay_fraction'):
    if values[name] > 1 or (values[name] == 1 and name in _DECAY_RATES):
      raise ValueError(f'{name}={values[name]}: must be below 1')
  for name in ('hessian_every', 'precondition_every'):
    if optimizer[name] < 1:
      raise ValueError(f'optimizer.{name}=0: must be at least 1')
  return {k: np.float32(v) for k, v in values.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
  """clip → scale → role factor and decay → schedule.

  Attributes:
    module: the optimizer's file.
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
    zero: dict[str, float] = collections.defaultdict(float)
    hyper = self._hyperparameters(zero, 0, 0.0)
    return self.module.transform(hyper).init(params)

  def update(
    self,
    grads: Any,
    state: Any,
    params: Any,
    step: Any,
    hypers: Mapping[str, Any],
    measure: Any = None,
  ) -> tuple[Any, Any, dict[str, jax.Array]]:
    """Returns the new parameters, the new state and what to log.

    Args:
      grads: mean gradient of the batch; rounded as it may be, what is made of
        it is not.
      state: from `init` or the last update.
      params: to be updated.
      step: steps done before.
      hypers: see `hyperparameters`.
      measure: if given, a scalar: parts.MEASURED is zero where it is not true.
    """
    norm = optax.tree.norm(_wide(grads))
    clip = jnp.where(
      hypers['clip_norm'] > 0,
      hypers['clip_norm'] / jnp.maximum(norm, hypers['clip_norm']),
      1.0,
    )
    s = schedules.factor(
      self.schedule_kind,
      step,
      hypers['steps'],
      hypers['warmup_steps'],
      hypers['final_fraction'],
      hypers['decay_fraction'],
    )
    hyper = self._hyperparameters(hypers, step, s * hypers['lr'])
    move = functools.partial(self._changes, hypers, hyper, s, clip)

    held, measured = (grads, state, params), {}
    # Matrix products are not done twice.
    apart = measure is not None and not hasattr(self.module, 'update_flops')
    if apart:
      # Reductions beside the update keep XLA from doing it in one pass and in
      # place, so they come before it, by a program of their own.
      sizes = lambda held: self._sizes(held[0], held[2], *move(held)[:2])
      measured = _only_if(measure, sizes, held)
      measured, held = jax.lax.optimization_barrier((measured, held))
    updates, changes, state = move(held)
    if not apart:
      measured = self._sizes(grads, params, updates, changes)
    stats = {'lr': s * hypers['lr'], 'grad_norm': norm, **measured}
    if hasattr(self.module, 'statistics'):
      stats |= self.module.statistics(state)
    if hasattr(self.module, 'move'):
      params, state = self.module.move(state, held[2], changes, hyper)
    else:
      params = jax.tree.map(jnp.subtract, held[2], changes)
    return params, state, stats

  def _changes(
    self,
    hypers: Mapping[str, Any],
    hyper: Hyperparameters,
    s: Any,
    clip: Any,
    held: Any,
  ) -> tuple[Any, Any, Any]:
    """Returns u, what is subtracted from the parameters, and the new state."""
    grads, state, params = held
    clipped = jax.tree.map(lambda g: g * clip, _wide(grads))
    transform = self.module.transform(hyper)
    updates, state = transform.update(clipped, state, params)

    def change(u, p, f):
      return s * self._decayed(hypers, u, p, f)

    changes = jax.tree.map(change, updates, params, self.factors)
    return updates, changes, state

  def _sizes(
    self, grads: Any, params: Any, updates: Any, changes: Any
  ) -> dict[str, jax.Array]:
    """Returns parts.MEASURED."""
    size = sum(p.size for p in jax.tree.leaves(params))
    direction = updates if self.wants_curvature else None
    return {
      'param_norm': optax.tree.norm(params),
      'update_rms': optax.tree.norm(changes) / np.sqrt(size),
      **parts.measure(self.factors, _wide(grads), changes, direction),
    }

  def update_curvature(
    self, state: Any, curvature: Any, hypers: Mapping[str, Any], step: Any
  ) -> Any:
    """Folds a curvature estimate into the state; `step` as in `update`."""
    del step  # No optimizer needs it.
    return self.module.update_curvature(state, curvature, hypers['b2'])

  @property
  def evaluates_others(self) -> bool:
    """Whether the model is evaluated with other parameters than trained."""
    return hasattr(self.module, 'evaluation_params')

  def evaluation_params(self, state: Any, params: Any) -> Any:
    """Returns the parameters with which the model is evaluated and saved."""
    if not self.evaluates_others:
      return params
    return self.module.evaluation_params(state, params)

  def named(self, stats: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `update` gave to log as numbers with names."""
    return parts.named(self.factors, stats)

  def _hyperparameters(
    self, hypers: Mapping[str, Any], step: Any, rate: Any
  ) -> Hyperparameters:
    each = lambda fn: jax.tree.map(fn, self.factors)
    return Hyperparameters(
      b1=hypers['b1'],
      b2=hypers['b2'],
      b3=hypers['b3'],
      alpha=hypers['alpha'],
      momentum=hypers['momentum'],
      eps=each(lambda f: hypers['eps'] * f.eps),
      rho=each(lambda f: hypers['rho'] * f.rho),
      bias_correction=self.bias_correction,
      precondition_every=hypers['precondition_every'],
      rate=rate,
      step=step,
      steps=hypers['steps'],
      plain_eps=hypers['eps'],
      kinds=each(lambda f: f.kind),
      rates=each(self._rate),
      eps_factors=each(lambda f: f.eps),
    )

  def _rate(self, f: Factors) -> float:
    """Returns r."""
    if hasattr(self.module, 'RATES') and f.kind in self.module.RATES:
      return getattr(f, self.module.RATES[f.kind])
    return f.lr

  def _decayed(
    self, hypers: Mapping[str, Any], u: Any, p: Any, f: Factors
  ) -> Any:
    rate, factor = self._rate(f), f.decay[self.decay_mode]
    if self.decay_mode == 'times_role_lr' and rate != f.lr:
      factor *= rate / f.lr
    decay = factor * hypers['weight_decay'] * p if factor else jnp.zeros_like(p)
    if self.decay_mode == 'independent':
      return hypers['lr'] * rate * u + decay
    return hypers['lr'] * (rate * u + decay)


def build(
  optimizer: ConfigDict,
  schedule: ConfigDict,
  factors: Any,
) -> Chain:
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
  module = find(optimizer.name)
  return Chain(
    module=module,
    decay_mode=optimizer.decay_mode,
    schedule_kind=getattr(module, 'SCHEDULE', schedule.kind),
    bias_correction=optimizer.hessian_bias_correction,
    factors=factors,
  )


def names() -> list[str]:
  """Returns the names of all optimizers: the files that have `transform`."""
  return [
    info.name
    for info in pkgutil.iter_modules(optimizers.__path__)
    if hasattr(_load(info.name), 'transform')
  ]


def find(name: str) -> Any:
  """Returns the file optimizers/NAME.py.

  Raises:
    ValueError: there is no such optimizer.
  """
  known = names()
  if name in known:
    return _load(name)
  near = difflib.get_close_matches(name, known, 1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  raise ValueError(
    f'optimizer.name={name!r}: {hint}there are {", ".join(known)}'
  )


def _wide(grads: Any) -> Any:
  """Returns gradients in float32, float64 ones as they are."""
  return jax.tree.map(
    lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), grads
  )


def _only_if(condition: Any, fn: Callable[[Any], Any], operand: Any) -> Any:
  """Returns fn(operand), or zeros without computing it."""
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(fn, operand))
  # XLA computes both branches if all they hold is entrywise or reduces; a
  # barrier is neither.
  apart = lambda operand: fn(jax.lax.optimization_barrier(operand))
  return jax.lax.cond(condition, apart, lambda _: zeros, operand)


def _load(name: str) -> Any:
  return importlib.import_module(f'{optimizers.__name__}.{name}')
