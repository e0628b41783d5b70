"""What an optimizer is: one value in one file, in this folder or your own.

Each file defines one `OPTIMIZER`, an `Optimizer`. It only needs a name, a
label, a reference, an Optax transform whose update is the direction u, and its
hyperparameters:

    OPTIMIZER = Optimizer(
      name='momentum', label='Momentum SGD', reference='Polyak 1964',
      transform=lambda h: optax.trace(h.b1),
      hyperparameters={'lr': lr(0.1, range=(1e-3, 1.0)), 'b1': memory(0.9)},
    )

`config.optimizer.name` is the name of a file here, or the path of one
elsewhere, such as `./momentum.py`. The chain (optimizers/build.py) does
clipping, decay, schedule and role factors.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import importlib
import math
import pkgutil
import re
from types import MappingProxyType, SimpleNamespace
from typing import Any

import optax

from steepest import optimizers
from steepest.experiments import outside

ROLES = ('embedding', 'hidden', 'readout', 'gain', 'bias')
# Role → column of the table in models/parametrization.py that scales its
# learning rate, as for Adam: entries of the direction do not shrink with width.
MUP = MappingProxyType(dict.fromkeys(ROLES, 'lr'))
Columns = Mapping[str, str]
SCALES = ('log', 'linear', 'log1m', 'half_life', 'timescale')


@dataclasses.dataclass(frozen=True)
class Hyper:
  """A hyperparameter.

  Attributes:
    default: value if a run sets none; the name of another hyperparameter means
      that one's value.
    range: lowest and highest value of a search, for the horizon if `scale`
      names one; None: not searched.
    scale: what a search samples uniformly: 'log', 'linear', 'log1m' (the log of
      1 - value), or the log of a horizon (optimizers/horizons.py): 'half_life'
      of a decay rate, 'timescale' of weight decay.
    unit: '' for pure numbers; what a search transfers of a horizon: 'tokens'
      (`range` is in steps of the proxy) or 'runs' (`range` is in runs).
    meaning: one sentence.
    factor: 'eps' or 'rho': the parametrization scales it, and `transform` gets
      a tree with one value per parameter.
    least: lowest value allowed.
    below: the value must be less than this.
    static: a constant of the compiled program instead of an argument.
    choices: allowed values, if static.
    half_life: as a share of the run, if it sets neither value nor horizon; 0:
      `default` is the value.
    every: the hyperparameter that holds the number of steps between updates of
      the average; '': every step.
  """

  default: Any
  range: tuple[float, float] | None = None
  scale: str = 'log'
  unit: str = ''
  meaning: str = ''
  factor: str = ''
  least: float = 0.0
  below: float = math.inf
  static: bool = False
  choices: tuple[Any, ...] = ()
  half_life: float = 0.0
  every: str = ''

  def __post_init__(self):
    if self.scale not in SCALES:
      raise ValueError(f'scale={self.scale!r}: one of {", ".join(SCALES)}')
    if self.range is not None and not self.range[0] < self.range[1]:
      raise ValueError(f'range={self.range}: give the lowest value first')


def lr(
  default: float, range: tuple[float, float] | None = None, **kwargs: Any
) -> Hyper:
  """Returns a peak learning rate; `range` holds the best ones of proxies."""
  return Hyper(
    default, range=range, **{'meaning': 'Peak learning rate.', **kwargs}
  )


def momentum(default: float | str, **kwargs: Any) -> Hyper:
  """Returns the decay rate of an average of gradients."""
  return memory(default, **{'range': (1.0, 30.0), **kwargs})


def memory(default: float | str, **kwargs: Any) -> Hyper:
  """Returns the decay rate of an average, e.g. of squares."""
  return Hyper(
    default,
    **{
      'range': (2.0, 300.0),
      'scale': 'half_life',
      'unit': 'tokens',
      'below': 1.0,
      'meaning': 'Decay rate of an average over steps.',
      **kwargs,
    },
  )


def epsilon(default: float, **kwargs: Any) -> Hyper:
  """Returns a number added to a denominator."""
  return Hyper(default, **{'meaning': 'Added to the denominator.', **kwargs})


def weight_decay(default: float = 1e-4) -> Hyper:
  """Returns a weight decay, searched by its timescale."""
  return Hyper(
    default,
    range=(0.05, 5.0),
    scale='timescale',
    unit='runs',
    meaning='Weight decay of matrices and embeddings; see decay_mode.',
  )


# For optimizers that use curvature; the training step makes the estimates.
_CURVATURE = {
  'hessian_every': Hyper(
    10, least=1, unit='steps', meaning='Steps between curvature estimates.'
  ),
  'hessian_subset': Hyper(
    1,
    least=1,
    static=True,
    meaning='Curvature is estimated on one of so many sequences.',
  ),
  'hessian_estimator': Hyper(
    'gnb',
    static=True,
    choices=('gnb', 'hutchinson'),
    meaning='Gauss-Newton-Bartlett (Sophia-G) or Hutchinson (Sophia-H).',
  ),
  'hessian_bias_correction': Hyper(
    False,
    static=True,
    choices=(False, True),
    meaning='Divide the average by 1 - b2^estimates; short runs need it.',
  ),
}
# For AdamW, which moves the roles that an optimizer leaves out.
_AUXILIARY = {
  'auxiliary_lr': Hyper(
    'lr', range=(1e-3, 3.2e-2), meaning='Peak learning rate of the rest.'
  ),
  'auxiliary_b1': memory(0.9, range=None),
  'auxiliary_b2': memory(0.95, range=None),
  'auxiliary_eps': epsilon(1e-8, factor='eps'),
  'auxiliary_weight_decay': Hyper('weight_decay', meaning='Of the rest.'),
}


def no_products(
  kind: str, shape: tuple[int, ...], static: Mapping[str, Any]
) -> float:
  """Returns the FLOPs of an entrywise update's matrix products: none."""
  del kind, shape, static
  return 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Optimizer:
  """An optimizer.

  Attributes:
    name: a word: the file's stem, used in reports and directory names.
    label: display name.
    reference: paper and equation.
    transform: (h) → Optax transform whose update is u, to be subtracted. `h`
      has each hyperparameter by name, a number or, with a `factor`, a tree;
      also `learning_rate` (s_t·lr), `step` (number of steps before this one),
      `steps` (of the run); the trees `kinds` (roles), `lr_factors` and
      `eps_factors` (numbers), `layers` (how many are stacked along a leaf's
      first axis under model.scan_layers, else 0); and `layout` and
      `state_layout`, how a mesh splits parameters and the state of all roles
      (PartitionSpecs), None if unknown.
    hyperparameters: by name; `weight_decay` is added, as are `hessian_…` with
      `curvature`, and `auxiliary_…` if AdamW moves some roles.
    lr_factors: role → column of the µP table, or a function of the static
      hyperparameters that returns it; None: no rule is known.
    moves: roles that `transform` gets, as a list of leaves unless these are
      all roles; AdamW moves the others.
    curvature: (state, diagonal, h) → state, folds in an estimate that the
      training step makes; None: uses none.
    path: (state, params, changes, h) → (params, state), applies the changes;
      None: they are subtracted.
    eval_params: (state, params) → parameters that are evaluated and saved;
      None: those that are trained.
    statistics: (state) → numbers to log; None: none.
    schedule: kind of schedule that it requires; '': the run's.
    decay_mode: decay mode that it requires; '': the run's.
    cautious_updates: always drop update entries that oppose the gradient (arXiv
      2411.16085), whatever `optimizer.cautious_updates` says.
    depends_on_steps: its first steps depend on the run's number of steps.
    read_only: state fields that an update does not write.
    remark: (initial parameters, their roles) → a line on how it changes them,
      or ''; None: it never does.
    flops: (role and shape of a leaf it moves, static hyperparameters) → FLOPs
      of the matrix products.
    exchanged: (shapes of the leaves it moves and of the state of all roles,
      with shardings, static hyperparameters) → bytes per device of the operands
      and results of its collectives on their mesh; None: none, or unknown.
  """

  name: str
  label: str
  reference: str
  transform: Callable[[SimpleNamespace], optax.GradientTransformation]
  hyperparameters: Mapping[str, Hyper]
  lr_factors: Columns | Callable[[Mapping[str, Any]], Columns] | None = (
    dataclasses.field(default_factory=lambda: MUP)
  )
  moves: tuple[str, ...] = ROLES
  curvature: Callable[[Any, Any, SimpleNamespace], Any] | None = None
  path: Callable[..., tuple[Any, Any]] | None = None
  eval_params: Callable[[Any, Any], Any] | None = None
  statistics: Callable[[Any], Mapping[str, Any]] | None = None
  schedule: str = ''
  decay_mode: str = ''
  cautious_updates: bool = False
  depends_on_steps: bool = False
  read_only: tuple[str, ...] = ()
  remark: Callable[[Any, Any], str] | None = None
  flops: Callable[[str, tuple[int, ...], Mapping[str, Any]], float] = (
    no_products
  )
  exchanged: Callable[[Sequence[Any], Any, Mapping[str, Any]], int] | None = (
    None
  )

  def __post_init__(self):
    # Directories are named after it.
    if not re.fullmatch(r'\w[\w-]*', self.name, re.ASCII):
      raise ValueError(f'name={self.name!r}: use only letters, digits, - and _')
    if not callable(self.transform):
      raise ValueError('transform: give a function of the hyperparameters')
    own = dict(self.hyperparameters)
    if 'lr' not in own:
      raise ValueError("hyperparameters: 'lr' is missing")
    for name, hyper in own.items():
      if not isinstance(hyper, Hyper):
        raise ValueError(f'hyperparameters[{name!r}]: give a Hyper')
    if wrong := set(self.moves) - set(ROLES):
      raise ValueError(f'moves: no role {", ".join(sorted(wrong))}')
    shared = {'weight_decay': weight_decay()}
    if self.curvature is not None:
      shared |= _CURVATURE
    if self.leaves_some:
      shared |= _AUXILIARY
    object.__setattr__(
      self, 'hyperparameters', MappingProxyType({**shared, **own})
    )

  @property
  def leaves_some(self) -> bool:
    """Whether it leaves some roles to the auxiliary AdamW."""
    return set(self.moves) != set(ROLES)

  def describe(self) -> dict[str, Any]:
    """Returns what a run records about it, for reports."""
    return {
      'name': self.name,
      'label': self.label,
      'reference': self.reference,
      'has_mup_rule': self.lr_factors is not None,
    }


def names() -> list[str]:
  """Returns the names of the optimizers in this folder."""
  return [
    info.name
    for info in pkgutil.iter_modules(optimizers.__path__)
    if hasattr(_in_folder(info.name), 'OPTIMIZER')
  ]


def find(name: str) -> Optimizer:
  """Returns the optimizer in a file of this folder, by name, or by path.

  Raises:
    FileNotFoundError: no file at this path.
    ValueError: no optimizer of this name, or the file's content is wrong.
  """
  if outside.is_path(name):
    found = vars(outside.load('optimizer.name=', name))
    if 'OPTIMIZER' in found and isinstance(found['OPTIMIZER'], Optimizer):
      return found['OPTIMIZER']
    raise ValueError(
      f'optimizer.name={name}: the file must define OPTIMIZER = '
      'Optimizer(name=…, label=…, reference=…, transform=…, '
      'hyperparameters=…), from steepest.optimizers.optimizer'
    )
  known = names()
  if name in known:
    return _in_folder(name).OPTIMIZER
  near = difflib.get_close_matches(name, known, 1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  raise ValueError(
    f'optimizer.name={name!r}: {hint}there are {", ".join(known)}, or the '
    'path of a file such as ./mine.py'
  )


def _in_folder(name: str) -> Any:
  return importlib.import_module(f'{optimizers.__name__}.{name}')
