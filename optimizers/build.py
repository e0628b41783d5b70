"""The one chain that all optimizers share.

With u = scale(clip(g)), schedule s_t, and for each role a factor r on the
learning rate and a factor r' on the decay (models/parametrization.py):

  independent    θ ← θ - s_t·(lr·r·u + wd·r'·θ), r' = 1
  times_lr       θ ← θ - s_t·lr·(r·u + wd·r'·θ), r' = 1
  times_role_lr  θ ← θ - s_t·lr·(r·u + wd·r'·θ), r' = r
  over_width     θ ← θ - s_t·(lr·r·u + wd·r'·θ), r' = 1/width of hidden matrices

`independent` is Loshchilov & Hutter's form, with wd about 1e-4. `times_lr` is
what torch.optim.AdamW and the authors of Lion and Sophia use, at r = 1.
`times_role_lr` is the naive form, whose decay weakens as models grow.
`over_width` is near-optimal for compute-optimal runs (arXiv 2512.05620).
Gains and biases have r' = 0. With cautious weight decay (arXiv 2510.12402)
only entries with u·θ ≥ 0 decay.

AdamW moves the roles that an optimizer leaves out, with its own learning rate,
betas and decay (`auxiliary_…`).
"""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import functools
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict
import numpy as np
import optax

from steepest.optimizers import horizons, role_statistics, schedules
from steepest.optimizers.optimizer import (
  Hyper,
  Optimizer,
  find,
  names,
  no_products,
)
from steepest.optimizers.trees import Split, cautious

DECAY_MODES = ('independent', 'times_lr', 'times_role_lr', 'over_width')
# Modes whose decay per step does not depend on the learning rate.
_OF_STEP = ('independent', 'over_width')
_FRACTION = Hyper(0.0, below=np.nextafter(1, 2))
# Keys of experiments/base.py.
_SLICE = (
  *('name', 'lr', 'betas', 'eps', 'weight_decay', 'decay_mode'),
  *('cautious', 'cautious_updates', 'clip_norm'),
)
# Hyperparameters of the chain itself.
_CHAIN = {
  'clip_norm': Hyper(1.0),
  'steps': Hyper(1, least=1),
  'warmup_steps': Hyper(0),
  'final_fraction': _FRACTION,
  'decay_fraction': _FRACTION,
}


class Factors(Protocol):
  """A parameter's factors; models/parametrization.py computes them."""

  lr: float
  spectral: float
  norm: float
  rho: float
  eps: float
  decay: Mapping[str, float]
  kind: str
  layers: int


class WithAuxiliary(NamedTuple):
  """The optimizer's state, and that of the auxiliary AdamW."""

  matrices: Any
  rest: Any


def hyperparameters(
  config: ConfigDict, schedule: ConfigDict, steps: int
) -> dict[str, np.float32]:
  """Returns, by name, the values that runs of one compiled step may vary.

  Args:
    config: the `optimizer` slice; `betas` are b1 and b2, and None stands for
      the optimizer's default.
    schedule: the `schedule` slice.
    steps: number of steps in the run.

  Raises:
    ValueError: a value is out of its range, or there is no such optimizer.
  """
  optimizer = find(config.name)
  values = {
    'clip_norm': config.clip_norm,
    'steps': steps,
    'warmup_steps': schedule.warmup_steps,
    'final_fraction': schedule.final_fraction,
    'decay_fraction': schedule.decay_fraction,
    **settings(optimizer, config),
  }
  own = optimizer.hyperparameters
  return {
    name: np.float32(
      value if name in own else _checked(name, value, _CHAIN[name])
    )
    for name, value in values.items()
    if name not in own or not own[name].static
  }


def settings(optimizer: Optimizer, config: ConfigDict) -> dict[str, Any]:
  """Returns the value of every hyperparameter of a run, static ones included.

  Raises:
    ValueError: `betas` are not two numbers, or a choice is unknown.
  """
  given = dict(config.items())
  given |= horizons.pair(given.pop('betas', None))
  found: dict[str, Any] = {}
  for name, hyper in optimizer.hyperparameters.items():
    held = given[name] if name in given else None
    found[name] = hyper.default if held is None else held
    if isinstance(hyper.default, float) and isinstance(found[name], int):
      found[name] = float(found[name])
    if hyper.choices and found[name] not in hyper.choices:
      shown = ', '.join(map(str, hyper.choices))
      raise ValueError(
        f'optimizer.{name}={found[name]!r}: must be one of {shown}'
      )
  # A hyperparameter set to another's name takes that one's value.
  for name, value in found.items():
    if isinstance(value, str) and value in found:
      found[name] = found[value]
  for name, hyper in optimizer.hyperparameters.items():
    if not hyper.choices:
      _checked(name, found[name], hyper)
  return found


def complete(config: ConfigDict) -> None:
  """Fills the gaps in an `optimizer` slice with the optimizer's defaults.

  Keys that only other optimizers of this folder have are taken out: a recipe
  or a study may set them for whichever runs they concern.

  Args:
    config: the slice; afterwards it has all hyperparameters.

  Raises:
    ValueError: there is no such optimizer, no optimizer has a key, or a value
      is of the wrong kind.
  """
  found = find(config.name)
  own = {k for k in found.hyperparameters if k not in ('b1', 'b2')}
  known = {*_SLICE, *own, *horizons.keys(found.hyperparameters)}
  for key in set(config) - known:
    hypers = [find(n).hyperparameters for n in names()]
    others = {k for of in hypers for k in (*of, *horizons.keys(of))}
    if key not in others:
      near = difflib.get_close_matches(key, known | others, 1, cutoff=0.3)
      hint = f'; did you mean optimizer.{near[0]}?' if near else ''
      raise ValueError(f'unknown key optimizer.{key} of {config.name}{hint}')
    del config[key]
  values = settings(found, config)
  values['betas'] = tuple(
    values.pop(b) if b in values else 0.0 for b in ('b1', 'b2')
  )
  for key in ('eps', 'weight_decay'):
    values.setdefault(key, 0.0)
  config.update(values)


def static(config: ConfigDict) -> FrozenConfigDict:
  """Returns the `optimizer` or `schedule` slice without its sweepable keys."""
  keys = set(config) - {'betas', 'warmup', *_CHAIN}
  if 'name' in config:
    own = find(config.name).hyperparameters
    # Other optimizers' keys have no effect.
    keys &= {*_SLICE, *own} - {k for k, x in own.items() if not x.static}
    keys -= {'lr', 'eps', 'weight_decay'}
  return FrozenConfigDict({key: config[key] for key in keys})


def _checked(name: str, value: Any, hyper: Hyper) -> Any:
  if not isinstance(value, (int, float, np.number)):
    raise ValueError(f'{name}={value!r}: give a number')
  if not np.isfinite(value) or value < 0:
    raise ValueError(f'{name}={value}: must be finite and not negative')
  if value < hyper.least:
    raise ValueError(f'{name}={value}: must be at least {hyper.least:g}')
  if value >= hyper.below:
    raise ValueError(f'{name}={value}: must be below {hyper.below:g}')
  return value


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
  """clip → direction → role factor and decay → schedule.

  Attributes:
    optimizer: gives the direction.
    static: its static hyperparameters.
    decay_mode: one of DECAY_MODES.
    schedule_kind: one of schedules.KINDS.
    factors: a tree like the parameters.
    cautious: decay only where it does not oppose the update.
    cautious_updates: drop update entries that oppose the gradient.
    layout: PartitionSpecs like the parameters; None: unknown.
    state_layout: PartitionSpecs like the state; None: unknown.
  """

  optimizer: Optimizer
  static: Mapping[str, Any]
  decay_mode: str
  schedule_kind: str
  factors: Any
  cautious: bool = False
  cautious_updates: bool = False
  layout: Any = None
  state_layout: Any = None

  @property
  def wants_curvature(self) -> bool:
    return self.optimizer.curvature is not None

  @property
  def lr_factors(self) -> Mapping[str, str] | None:
    """Role → column of the µP table; None: no rule is known."""
    found = self.optimizer.lr_factors
    return found(self.static) if callable(found) else found

  @property
  def evaluates_others(self) -> bool:
    """Whether the evaluated parameters differ from the trained ones."""
    return self.optimizer.eval_params is not None

  def init(self, params: Any) -> Any:
    """Returns the optimizer's state; it shards like the parameters."""
    names = (*self.optimizer.hyperparameters, *_CHAIN)
    hyper = self.namespace(dict.fromkeys(names, 0.0), 0, 0.0)
    return self._direction(hyper).init(params)

  def remark(self, params: Any) -> str:
    """Returns a remark on the initial parameters, or ''."""
    if self.optimizer.remark is None:
      return ''
    kinds = jax.tree.map(lambda f: f.kind, self.factors)
    return self.optimizer.remark(params, kinds)

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
      grads: mean gradient of the batch, in any precision; the update is
        computed in float32 or wider.
      state: from `init` or the last update.
      params: to be updated.
      step: number of steps before this one.
      hypers: see `hyperparameters`.
      measure: if given, a scalar; if it is false, role_statistics.MEASURED is
        zero.
    """
    norm = optax.tree.norm(_wide(grads))
    limit = hypers['clip_norm']
    clip = jnp.where(limit > 0, limit / jnp.maximum(norm, limit), 1.0)
    s = schedules.factor(
      self.schedule_kind,
      step,
      hypers['steps'],
      hypers['warmup_steps'],
      hypers['final_fraction'],
      hypers['decay_fraction'],
    )
    h = self.namespace(hypers, step, s * hypers['lr'])
    move = functools.partial(self.changes, hypers, h, s, clip)

    held, measured = (grads, state, params), {}
    # Never compute matrix products twice.
    apart = measure is not None and self.optimizer.flops is no_products
    if apart:
      # Reductions next to the update would keep XLA from doing it in place and
      # in one pass, so a separate computation does them first.
      sizes = lambda held: self._sizes(held[0], held[2], *move(held)[:2])
      measured = _only_if(measure, sizes, held)
      measured, held = jax.lax.optimization_barrier((measured, held))
    updates, changes, state = move(held)
    if not apart:
      measured = self._sizes(grads, params, updates, changes)
    stats = {'lr': s * hypers['lr'], 'grad_norm': norm, **measured}
    if self.optimizer.statistics is not None:
      stats |= self.optimizer.statistics(state)
    params, state = self.move(state, held[2], changes, h)
    return params, state, stats

  def changes(
    self, hypers: Mapping[str, Any], h: SimpleNamespace, s: Any, clip: Any, held
  ) -> tuple[Any, Any, Any]:
    """Returns u, the changes to subtract from the parameters, and the state.

    Args:
      hypers: see `hyperparameters`.
      h: what `namespace` returns for them.
      s: factor of the schedule.
      clip: factor on the gradient.
      held: gradient, state and parameters.
    """
    grads, state, params = held
    clipped = jax.tree.map(lambda g: g * clip, _wide(grads))
    updates, state = self._direction(h).update(clipped, state, params)
    change = lambda u, p, f: s * self._decayed(hypers, u, p, f)
    changes = jax.tree.map(change, updates, params, self.factors)
    return updates, changes, state

  def move(
    self, state: Any, params: Any, changes: Any, h: SimpleNamespace
  ) -> tuple[Any, Any]:
    """Returns the new parameters, and the state."""
    if self.optimizer.path is not None:
      return self.optimizer.path(state, params, changes, h)
    return jax.tree.map(jnp.subtract, params, changes), state

  def update_curvature(
    self, state: Any, curvature: Any, hypers: Mapping[str, Any], step: Any
  ) -> Any:
    """Folds a curvature estimate into the state; `step` as in `update`."""
    assert self.optimizer.curvature is not None
    h = self.namespace(hypers, step, hypers['lr'])
    return self.optimizer.curvature(state, curvature, h)

  def evaluation_params(self, state: Any, params: Any) -> Any:
    """Returns the parameters to evaluate and save."""
    if self.optimizer.eval_params is None:
      return params
    return self.optimizer.eval_params(state, params)

  def named(self, stats: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the statistics of `update` as named numbers."""
    return role_statistics.named(self.factors, stats)

  def _direction(self, h: SimpleNamespace) -> optax.GradientTransformation:
    """Returns the transform whose update is u, for all roles."""
    o = self.optimizer
    transform = _with_auxiliary(o, h) if o.leaves_some else o.transform(h)
    if o.cautious_updates or self.cautious_updates:
      transform = cautious(transform, h.layers)
    return transform

  def _sizes(
    self, grads: Any, params: Any, updates: Any, changes: Any
  ) -> dict[str, jax.Array]:
    """Returns role_statistics.MEASURED."""
    size = sum(p.size for p in jax.tree.leaves(params))
    direction = updates if self.wants_curvature else None
    return {
      'param_norm': optax.tree.norm(params),
      'update_rms': optax.tree.norm(changes) / np.sqrt(size),
      **role_statistics.measure(self.factors, _wide(grads), changes, direction),
    }

  def namespace(
    self, hypers: Mapping[str, Any], step: Any, learning_rate: Any
  ) -> SimpleNamespace:
    """Returns the argument of the optimizer's `transform`."""
    each = lambda fn: jax.tree.map(fn, self.factors)
    values = {**hypers, **self.static}
    for name, hyper in self.optimizer.hyperparameters.items():
      if hyper.factor:
        values[name] = self._scaled(values[name], hyper.factor)
    return SimpleNamespace(
      **values,
      learning_rate=learning_rate,
      step=step,
      kinds=each(lambda f: f.kind),
      layers=each(lambda f: f.layers),
      lr_factors=each(self._lr_factor),
      eps_factors=each(lambda f: f.eps),
      layout=self.layout,
      state_layout=self.state_layout,
    )

  def _scaled(self, value: Any, factor: str) -> Any:
    """Returns a tree: `value` times each parameter's factor."""
    return jax.tree.map(lambda f: value * getattr(f, factor), self.factors)

  def _lr_factor(self, f: Factors) -> float:
    """Returns r."""
    if f.kind not in self.optimizer.moves:
      return f.lr
    if self.lr_factors is None:
      return 1.0
    return getattr(f, self.lr_factors[f.kind])

  def _decayed(
    self, hypers: Mapping[str, Any], u: Any, p: Any, f: Factors
  ) -> Any:
    of = '' if f.kind in self.optimizer.moves else 'auxiliary_'
    lr, decay = hypers[f'{of}lr'], hypers[f'{of}weight_decay']
    lr_factor, factor = self._lr_factor(f), f.decay[self.decay_mode]
    if self.decay_mode == 'times_role_lr' and lr_factor != f.lr:
      factor *= lr_factor / f.lr
    decayed = factor * decay * p if factor else jnp.zeros_like(p)
    if self.cautious and factor:
      decayed = jnp.where(u * p >= 0, decayed, 0)
    if self.decay_mode in _OF_STEP:
      return lr * lr_factor * u + decayed
    return lr * (lr_factor * u + decayed)


def build(
  optimizer: ConfigDict, schedule: ConfigDict, factors: Any, layout: Any = None
) -> Chain:
  """Returns the chain of a run.

  Args:
    optimizer: the `optimizer` slice.
    schedule: the `schedule` slice.
    factors: a tree like the parameters, see `Factors`.
    layout: PartitionSpecs like the parameters; None: unknown.

  Raises:
    ValueError: a name is unknown, or the optimizer's file is wrong.
  """
  for key, value, known in (
    ('optimizer.decay_mode', optimizer.decay_mode, DECAY_MODES),
    ('schedule.kind', schedule.kind, schedules.KINDS),
  ):
    if value not in known:
      raise ValueError(f'{key}={value!r}: must be one of {", ".join(known)}')
  found = find(optimizer.name)
  values = settings(found, optimizer)
  return Chain(
    optimizer=found,
    static={k: values[k] for k, x in found.hyperparameters.items() if x.static},
    decay_mode=found.decay_mode or optimizer.decay_mode,
    schedule_kind=found.schedule or schedule.kind,
    factors=factors,
    cautious=optimizer.cautious,
    cautious_updates=optimizer.cautious_updates,
    layout=layout,
  )


def _with_auxiliary(
  optimizer: Optimizer, h: SimpleNamespace
) -> optax.GradientTransformation:
  """Returns the optimizer's direction for its leaves, AdamW's for the rest."""
  split = Split(h.kinds, optimizer.moves)
  structure: Any = jax.tree.structure(h.kinds)

  def only(part: int) -> dict[str, Any]:
    return {
      name: split.parts(value)[part]
      if jax.tree.structure(value) == structure
      else value
      for name, value in vars(h).items()
    }

  own = optimizer.transform(SimpleNamespace(**only(0)))
  rest = only(1)
  for name in ('b1', 'b2', 'eps'):
    rest[name] = rest[f'auxiliary_{name}']
  others = find('adamw').transform(SimpleNamespace(**rest))

  def init(params: Any) -> WithAuxiliary:
    matrices, rest = split.parts(params)
    return WithAuxiliary(own.init(matrices), others.init(rest))

  def update(grads: Any, state: WithAuxiliary, params: Any = None):
    pairs = split.parts(grads), split.parts(params)
    matrices, of_matrices = own.update(pairs[0][0], state.matrices, pairs[1][0])
    rest, of_rest = others.update(pairs[0][1], state.rest, pairs[1][1])
    return split.whole(matrices, rest), WithAuxiliary(of_matrices, of_rest)

  return optax.GradientTransformation(init, update)


def _wide(grads: Any) -> Any:
  """Returns gradients in float32; float64 ones stay as they are."""
  return jax.tree.map(
    lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), grads
  )


def _only_if(condition: Any, fn: Callable[[Any], Any], operand: Any) -> Any:
  """Returns fn(operand), or zeros without computing it."""
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(fn, operand))
  # XLA computes both branches if they hold only entrywise operations and
  # reductions; a barrier is neither.
  apart = lambda operand: fn(jax.lax.optimization_barrier(operand))
  return jax.lax.cond(condition, apart, lambda _: zeros, operand)
