"""What an optimizer is: one value, made in one file of this folder or of yours.

A file holds one `OPTIMIZER`, an `Optimizer`. All it must have is a name, a
label, a reference, an Optax transform whose update is the direction u, and its
hyperparameters:

    OPTIMIZER = Optimizer(
      name='momentum', label='Momentum SGD', reference='Polyak 1964',
      transform=lambda h: optax.trace(h.b1),
      hyperparameters={'lr': lr(0.1, range=(1e-3, 1.0)), 'b1': memory(0.9)},
    )

`config.optimizer.name` takes the name of a file here, or the path of one
elsewhere, `./momentum.py`. Clipping, decay, schedule and role factors are the
chain's (optimizers/build.py).
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
# Role → column of models/parametrization.py's table that scales its learning
# rate: that of Adam, for directions whose entries do not shrink with width.
MUP = MappingProxyType(dict.fromkeys(ROLES, 'lr'))
Columns = Mapping[str, str]
SCALES = ('log', 'linear', 'log1m', 'half_life', 'timescale')


@dataclasses.dataclass(frozen=True)
class Hyper:
  """A hyperparameter.

  Attributes:
    default: value of a run that sets none; the name of another hyperparameter
      stands for that one's value.
    range: lowest and highest value of a search, or of the horizon that `scale`
      names; None: not searched.
    scale: what a search draws evenly: 'log', 'linear', 'log1m', the log of
      1 - value, or the log of a horizon (optimizers/horizons.py): 'half_life'
      of a decay rate, 'timescale' of weight decay.
    unit: '' for pure numbers; of a horizon what a search carries over, 'tokens'
      (its range is in steps of the proxy) or 'runs' (its range in these).
    meaning: one sentence.
    factor: 'eps' or 'rho': the parametrization's factor on it. `transform`
      then gets a tree, each parameter its own value.
    least: lowest value allowed.
    below: bound that the value must stay under.
    static: a constant of the compiled program instead of an argument.
    choices: values allowed, of a static one.
    half_life: of a run that sets neither value nor horizon, a share of it; 0:
      `default` is the value.
    every: the hyperparameter that says how many steps lie between two updates
      of the average; '': one.
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
  """Returns a peak learning rate; `range` is where proxies' best ones lie."""
  return Hyper(
    default, range=range, **{'meaning': 'Peak learning rate.', **kwargs}
  )


def momentum(default: float | str, **kwargs: Any) -> Hyper:
  """Returns a decay rate of an average of gradients."""
  return memory(default, **{'range': (1.0, 30.0), **kwargs})


def memory(default: float | str, **kwargs: Any) -> Hyper:
  """Returns a decay rate of an average, of squares say: half-lives in steps."""
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


# Of those that want curvature; the training step makes the estimates.
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
# Of AdamW, which moves the roles that an optimizer leaves.
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
    name: a word: the file's stem, and what reports and directories call it.
    label: display name.
    reference: paper and equation.
    transform: (h) → Optax transform whose update is u, to be subtracted. `h`
      has each hyperparameter by name, a number or, with a `factor`, a tree;
      also `learning_rate` (s_t·lr), `step` (steps done before), `steps` (of
      the run), and as trees `kinds` (roles) and `lr_factors`, `eps_factors`
      (numbers), `layers` (how many are stacked in a leaf's first axis under
      model.scan_layers, else 0); and `layout`, how a mesh splits parameters
      (PartitionSpecs), None where that is not known.
    hyperparameters: by name; `weight_decay`, with `curvature` the `hessian_…`
      and, where roles are left to AdamW, the `auxiliary_…` are added.
    lr_factors: role → column of the µP table, or a function of the static
      hyperparameters that returns it; None: no rule is known.
    moves: roles that `transform` gets, as a list of leaves where these are not
      all; the others are moved by AdamW.
    curvature: (state, diagonal, h) → state, folds in an estimate that the
      training step makes; None: wants none.
    path: (state, params, changes, h) → (params, state), what becomes of them;
      None: the changes are subtracted.
    eval_params: (state, params) → parameters that are evaluated and saved;
      None: those that are trained.
    statistics: (state) → numbers to be logged; None: none.
    schedule: kind of schedule that it insists on; '': the run's.
    decay_mode: that it insists on, likewise.
    cautious_updates: leaves out what the gradient points away from (arXiv
      2411.16085), whatever `optimizer.cautious_updates` says.
    depends_on_steps: its first steps depend on how many there will be.
    read_only: fields of the state that an update leaves as they are.
    remark: (parameters at the start, their roles) → a line on what becomes of
      them, '' if there is nothing to say; None: never is.
    flops: (role and shape of a leaf it moves, static hyperparameters) → FLOPs
      of the matrix products.
    exchanged: (shapes of the leaves it moves, with shardings, static
      hyperparameters) → operands and results, in bytes of a device, of the
      collectives that it takes on their mesh; None: none, or not known.
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
  exchanged: Callable[[Sequence[Any], Mapping[str, Any]], int] | None = None

  def __post_init__(self):
    # It names directories.
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
    """Whether the auxiliary AdamW moves some roles."""
    return set(self.moves) != set(ROLES)

  def describe(self) -> dict[str, Any]:
    """Returns what a run writes down of it, for reports."""
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
  """Returns the optimizer of a file here, by name, or elsewhere, by path.

  Raises:
    FileNotFoundError: it is a path, and there is no file.
    ValueError: there is none, or the file does not hold what it should.
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
