"""Rules for each parameter role, standard and µP, in one table.

µP is the maximal-update parametrization of Tensor Programs V, arXiv
2203.03466, in the form of its Table 8; docs/parametrization.md renders the
table with its sources. At the base shapes every cell of `mup` equals that of
`sp`, bit for bit.

A tied readout is the embedding's matrix followed by the readout's forward
factor; a matrix that writes into the residual stream starts smaller by
1/√(2·layers).
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import NamedTuple

from flax import linen as nn, struct
import jax
from ml_collections import ConfigDict

from steepest.models.config import ModelConfig


class Row(NamedTuple):
  """A role's rules; each cell is a key of `_CELLS`.

  `init` is a standard deviation (for a gain: its value) and `forward` a factor
  on the parameter's output. The others are factors on the optimizer's
  hyperparameters: learning rate, learning rate of orthogonalised updates with
  entries of a fixed size, learning rate of updates with a fixed layer norm,
  Sophia's rho, epsilon, and the decay per step under each decay mode of
  optimizers/build.py.
  """

  init: str
  forward: str
  lr: str
  spectral: str
  norm: str
  rho: str
  eps: str
  independent: str
  times_lr: str
  times_role_lr: str
  over_width: str


def _row(cells: str) -> Row:
  return Row(*cells.split())


# fmt: off
# Cells are in the order of Row's fields.
TABLE = {
  'sp': {
    'embedding': _row('0.02     1    1    1  1  1  1    1  1  1  1'),
    'hidden':    _row('1/√fan   1    1    1  1  1  1    1  1  1  1'),
    'readout':   _row('1/√fan   1    1    1  1  1  1    1  1  1  1'),
    'gain':      _row('1        1    1    1  1  1  1    0  0  0  0'),
    'bias':      _row('0        1    1    1  1  1  1    0  0  0  0'),
  },
  'mup': {
    'embedding': _row('0.02     1    1    1  m  m  1/m  1  1  1    1'),
    'hidden':    _row('1/√fan   1    1/f  s  1  m  1/m  1  1  1/f  1/f'),
    'readout':   _row('1/√base  1/m  1    1  m  m  1/m  1  1  1    1'),
    'gain':      _row('1        1    1    1  1  m  1/m  0  0  0    0'),
    'bias':      _row('0        1    1    1  1  m  1/m  0  0  0    0'),
  },
}
# Additional factors under a depth rule, for parameters in a residual branch;
# the forward factor applies to the branch's output.
BRANCH = _row('1  d⁻ᵃ  dᵃ⁻¹  dᵃ⁻¹  dᵃ⁻¹  dᵃ  d⁻ᵃ  1  1  dᵃ⁻¹  1')
# Factor on query-key products.
ATTENTION = {'sp': '1/√h', 'mup': '√h₀/h'}
# fmt: on


def _spectral(fan_in: float, fan_out: float) -> float:
  """Returns √(out/in) / √max(in, out).

  This is the spectral norm that an update should have (arXiv 2310.17813,
  condition 1) over that of an orthogonal one with entries of a fixed size.
  """
  return (fan_out / fan_in / max(fan_in, fan_out)) ** 0.5


_CELLS: dict[str, Callable[['Sizes'], float]] = {
  '0': lambda s: 0.0,
  '1': lambda s: 1.0,
  '0.02': lambda s: 0.02,
  '1/√fan': lambda s: s.fan_in**-0.5,
  '1/√base': lambda s: s.base_fan_in**-0.5,
  'm': lambda s: s.width_ratio,
  '1/m': lambda s: 1 / s.width_ratio,
  '1/f': lambda s: s.base_fan_in / s.fan_in,
  's': lambda s: (
    _spectral(s.fan_in, s.fan_out) / _spectral(s.base_fan_in, s.base_fan_out)
  ),
  'dᵃ': lambda s: s.depth_ratio**s.alpha,
  'd⁻ᵃ': lambda s: s.depth_ratio**-s.alpha,
  'dᵃ⁻¹': lambda s: s.depth_ratio ** (s.alpha - 1),
  '1/√h': lambda s: s.head_dim**-0.5,
  '√h₀/h': lambda s: s.base_head_dim**-0.5 * (s.base_head_dim / s.head_dim),
}
# Exponents a of CompleteP (arXiv 2505.01618) and depth-µP (arXiv 2310.02244).
_DEPTH_ALPHA = {'none': None, 'completep': 1.0, 'depth_mup': 0.5}


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The sizes that the table's cells depend on.

  Attributes:
    fan_in: inputs that one output of the parameter's matrix sums over.
    base_fan_in: the same at the base shapes; f is their ratio.
    fan_out: outputs of the parameter's matrix.
    base_fan_out: the same at the base shapes.
    width_ratio: m, width over base width.
    depth_ratio: d, layers over base layers.
    alpha: a, exponent of the depth rule.
    head_dim: h, features of a head.
    base_head_dim: h₀, the same at the base shapes.
  """

  fan_in: float
  base_fan_in: float
  fan_out: float
  base_fan_out: float
  width_ratio: float
  depth_ratio: float
  alpha: float
  head_dim: float
  base_head_dim: float


@dataclasses.dataclass(frozen=True)
class Role:
  """What a parameter does in its model.

  Attributes:
    kind: 'embedding', 'hidden', 'readout', 'gain' or 'bias'.
    fan_in: inputs that one of its outputs sums over; 1 for vectors.
    base_fan_in: the same at the base shapes.
    fan_out: outputs of a matrix in a residual branch; 1 for others.
    base_fan_out: the same at the base shapes.
    residual: whether it is inside a residual branch.
  """

  kind: str
  fan_in: int = 1
  base_fan_in: float = 1
  fan_out: int = 1
  base_fan_out: float = 1
  residual: bool = False


RoleAndInit = tuple[Role, Callable[..., jax.Array]]


class Parameter(nn.LogicallyPartitioned):
  """A value with its logical axes, as Flax partitions it, and its role."""

  role: Role = struct.field(pytree_node=False, default=Role('hidden'))


@dataclasses.dataclass(frozen=True)
class Factors:
  """A parameter's factors on the optimizer's hyperparameters.

  Attributes:
    lr: on the learning rate.
    spectral: on the learning rate of orthogonalised updates with entries of a
      fixed size.
    norm: on the learning rate of updates with a fixed layer norm.
    rho: on Sophia's rho.
    eps: on epsilon.
    decay: decay mode → on the decay per step; 0 for vectors.
    kind: the role's.
    layers: how many are stacked along the array's first axis; 0: none.
  """

  lr: float
  spectral: float
  norm: float
  rho: float
  eps: float
  decay: Mapping[str, float]
  kind: str
  layers: int = 0


@dataclasses.dataclass(frozen=True)
class Parametrization:
  """The rules of one model: its shapes relative to the base shapes."""

  kind: str
  model: ModelConfig
  base_width: int
  base_depth: int
  base_heads_dim: float
  base_kv_heads_dim: float
  base_head_dim: float
  base_mlp_dim: float
  depth_alpha: float | None
  scale_rho: bool
  attention_multiplier: float
  logit_multiplier: float

  @property
  def width_ratio(self) -> float:
    """m: width over base width."""
    return self.model.width / self.base_width

  @property
  def attention_scale(self) -> float:
    """Factor on query-key products."""
    scale = self._cell(ATTENTION[self.kind], Role('hidden'))
    return scale * self.attention_multiplier

  @property
  def readout_multiplier(self) -> float:
    """Factor on the logits."""
    forward = TABLE[self.kind]['readout'].forward
    return self._cell(forward, Role('readout')) * self.logit_multiplier

  @property
  def residual_multiplier(self) -> float:
    """Factor on a branch's output to the residual stream."""
    if self.depth_alpha is None:
      return 1.0
    return self._cell(BRANCH.forward, Role('hidden'))

  def embedding(self) -> RoleAndInit:
    """Role of token and position embeddings."""
    role = Role('embedding')
    return role, nn.initializers.normal(self._init(role))

  def hidden(
    self, fan_in: str, writes_residual: bool = False, fan_out: str = 'width'
  ) -> RoleAndInit:
    """Role of a matrix inside a residual branch.

    Args:
      fan_in: the size that it sums over: 'width', 'heads'
        (num_heads·head_dim) or 'mlp'.
      writes_residual: whether its output is added to the residual stream.
      fan_out: the size of its output: one of these, or 'kv_heads'.
    """
    model = self.model
    sizes = {
      'width': (model.width, self.base_width),
      'heads': (model.num_heads * model.head_dim, self.base_heads_dim),
      'kv_heads': (
        model.num_kv_heads * model.head_dim,
        self.base_kv_heads_dim,
      ),
      'mlp': (model.mlp_dim, self.base_mlp_dim),
    }
    role = Role('hidden', *sizes[fan_in], *sizes[fan_out], residual=True)
    std = self._init(role)
    if writes_residual:
      # Under a depth rule the residual multiplier shrinks it further.
      layers = model.num_layers if self.depth_alpha is None else self.base_depth
      std *= (2 * layers) ** -0.5
    return role, nn.initializers.normal(std)

  def readout(self) -> RoleAndInit:
    """Role of an untied readout matrix."""
    role = Role('readout', self.model.width, self.base_width)
    return role, nn.initializers.normal(self._init(role))

  def gain(self, residual: bool) -> RoleAndInit:
    """Role of a normalisation's gain."""
    role = Role('gain', residual=residual)
    return role, nn.initializers.constant(self._init(role))

  def bias(self, residual: bool) -> RoleAndInit:
    """Role of any bias."""
    role = Role('bias', residual=residual)
    return role, nn.initializers.constant(self._init(role))

  def factors(self, role: Role) -> Factors:
    """Returns a parameter's factors on the hyperparameters."""
    row = TABLE[self.kind][role.kind]

    def cell(column: str) -> float:
      value = self._cell(getattr(row, column), role)
      if role.residual and self.depth_alpha is not None:
        value *= self._cell(getattr(BRANCH, column), role)
      return value

    return Factors(
      cell('lr'),
      cell('spectral'),
      cell('norm'),
      cell('rho') if self.scale_rho else 1.0,
      cell('eps'),
      {mode: cell(mode) for mode in row._fields[-4:]},
      role.kind,
    )

  def _init(self, role: Role) -> float:
    return self._cell(TABLE[self.kind][role.kind].init, role)

  def _cell(self, cell: str, role: Role) -> float:
    return _CELLS[cell](
      Sizes(
        fan_in=role.fan_in,
        base_fan_in=role.base_fan_in,
        fan_out=role.fan_out,
        base_fan_out=role.base_fan_out,
        width_ratio=self.width_ratio,
        depth_ratio=self.model.num_layers / self.base_depth,
        alpha=self.depth_alpha or 0.0,
        head_dim=self.model.head_dim,
        base_head_dim=self.base_head_dim,
      )
    )


def resolve(config: ConfigDict, model: ModelConfig) -> Parametrization:
  """Returns the rules for `model`.

  Args:
    config: the `parametrization` slice; base shapes of 0 equal the model's.
    model: the model's resolved shapes.

  Raises:
    ValueError: a name is unknown.
  """
  if config.kind not in ('sp', 'mup'):
    raise ValueError(f'parametrization.kind={config.kind!r}: sp or mup')
  if config.depth_rule not in _DEPTH_ALPHA:
    raise ValueError(
      f'parametrization.depth_rule={config.depth_rule!r}: must be one of '
      f'{", ".join(_DEPTH_ALPHA)}'
    )
  if config.kind == 'sp' and config.depth_rule != 'none':
    raise ValueError(
      'parametrization.depth_rule needs parametrization.kind=mup'
    )
  base_width = config.base_width or model.width
  ratio = model.width / base_width
  heads_dim = model.num_heads * model.head_dim / ratio
  head_dim = float(config.base_head_dim)
  if not head_dim:
    head_dim = heads_dim / (config.base_num_heads or model.num_heads)
  if config.base_num_heads:
    heads_dim = config.base_num_heads * head_dim
  kv_heads_dim = heads_dim * model.num_kv_heads / model.num_heads
  if config.base_num_kv_heads:
    kv_heads_dim = config.base_num_kv_heads * head_dim
  return Parametrization(
    kind=config.kind,
    model=model,
    base_width=base_width,
    base_depth=config.base_depth or model.num_layers,
    base_heads_dim=heads_dim,
    base_kv_heads_dim=kv_heads_dim,
    base_head_dim=head_dim,
    base_mlp_dim=config.base_mlp_dim or model.mlp_dim / ratio,
    depth_alpha=_DEPTH_ALPHA[config.depth_rule],
    scale_rho=config.scale_rho,
    attention_multiplier=config.attention_multiplier,
    logit_multiplier=config.logit_multiplier,
  )
