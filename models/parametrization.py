"""What each parameter's role means: initialisation, multipliers, lr factor.

Two parametrizations, standard (`sp`) and maximal-update (`mup`, Table 8 of
Tensor Programs V, arXiv 2203.03466). With m = width / base_width, f = the
matrix's own fan_in / its base fan_in and d = num_layers / base_depth:

  role       init std            forward       lr     rho    eps
             sp       mup        sp   mup      mup    mup    mup
  embedding  0.02     0.02       1    1        1      m      1/m
  hidden     1/√fan_in           1    1        1/f    m      1/m
  readout    1/√fan_in 1/√base   1    1/m      1      m      1/m
  gain, bias 1, 0     1, 0       1    1        1      m      1/m

A tied readout is the embedding's matrix behind the readout's multiplier.
Matrices that write into the residual stream start 1/√(2·layers) smaller.
Attention logits are scaled by 1/√head_dim (sp) or √base_head_dim/head_dim
(mup). In the standard parametrization every other factor is 1. At the base
shapes all factors are exactly 1, so mup is sp bit for bit.

With a depth rule (exponent a), a parameter inside a residual branch also has
lr·d^(a-1), rho·d^a and eps·d^-a, and the branch's output is scaled by d^-a.

The columns rho and eps keep Sophia's unclipped fraction and AdamW's epsilon
in proportion as gradients shrink with 1/m and curvatures with 1/m².
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
from jax import numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from steepest.models.config import ModelConfig
from steepest.models.matmul import matmul

_EMBEDDING_STD = 0.02
# Exponents of CompleteP (arXiv 2505.01618) and depth-µP (arXiv 2310.02244).
_DEPTH_ALPHA = {'none': None, 'completep': 1.0, 'depth_mup': 0.5}


@dataclasses.dataclass(frozen=True)
class Role:
  """What a parameter does in its model.

  Attributes:
    kind: 'embedding', 'hidden', 'readout', 'gain' or 'bias'.
    fan_in: inputs that each of its outputs sums over; 1 for vectors.
    base_fan_in: the same at the base shapes.
    residual: whether it sits inside a residual branch.
  """

  kind: str
  fan_in: int = 1
  base_fan_in: float = 1
  residual: bool = False

  @property
  def decays(self) -> bool:
    """Whether weight decay applies: matrices, embeddings and positions."""
    return self.kind not in ('gain', 'bias')


RoleAndInit = tuple[Role, Callable[..., jax.Array]]


class Parameter(nn.LogicallyPartitioned):
  """A value boxed with its logical axis names and its role."""

  role: Role = struct.field(pytree_node=False, default=Role('hidden'))


@dataclasses.dataclass(frozen=True)
class Factors:
  """A parameter's factors on the optimizer's hyperparameters."""

  lr: float
  rho: float
  eps: float
  decays: bool
  kind: str


@dataclasses.dataclass(frozen=True)
class Parametrization:
  """The rules of one model: its shapes beside the base shapes."""

  kind: str
  model: ModelConfig
  base_width: int
  base_depth: int
  base_heads_dim: float
  base_head_dim: float
  base_mlp_dim: float
  depth_alpha: float | None

  @property
  def width_ratio(self) -> float:
    """m: width over base width, 1 in the standard parametrization."""
    return self.model.width / self.base_width if self.kind == 'mup' else 1.0

  @property
  def depth_ratio(self) -> float:
    """d: layers over base layers, 1 without a depth rule."""
    if self.depth_alpha is None:
      return 1.0
    return self.model.num_layers / self.base_depth

  @property
  def attention_scale(self) -> float:
    """Factor on query-key products."""
    if self.kind == 'sp':
      return self.model.head_dim**-0.5
    return self.base_head_dim**-0.5 * (self.base_head_dim / self.model.head_dim)

  @property
  def readout_multiplier(self) -> float:
    """Factor on the logits."""
    return 1.0 / self.width_ratio

  @property
  def residual_multiplier(self) -> float:
    """Factor on what a branch adds to the residual stream."""
    return self.depth_ratio ** -(self.depth_alpha or 0.0)

  def embedding(self) -> RoleAndInit:
    """Role of token and position embeddings."""
    return Role('embedding'), nn.initializers.normal(_EMBEDDING_STD)

  def hidden(self, fan_in: str, writes_residual: bool = False) -> RoleAndInit:
    """Role of a matrix inside a residual branch.

    Args:
      fan_in: which of its model's sizes it sums over: 'width', 'heads'
        (num_heads·head_dim) or 'mlp'.
      writes_residual: whether its output is added to the residual stream.
    """
    model = self.model
    size, base = {
      'width': (model.width, self.base_width),
      'heads': (model.num_heads * model.head_dim, self.base_heads_dim),
      'mlp': (model.mlp_dim, self.base_mlp_dim),
    }[fan_in]
    std = size**-0.5
    if writes_residual:
      # With a depth rule the residual multiplier does the further shrinking.
      layers = model.num_layers if self.depth_alpha is None else self.base_depth
      std *= (2 * layers) ** -0.5
    role = Role('hidden', size, base, residual=True)
    return role, nn.initializers.normal(std)

  def readout(self) -> RoleAndInit:
    """Role of an untied readout matrix."""
    width = self.model.width
    base = self.base_width if self.kind == 'mup' else width
    init = nn.initializers.normal(base**-0.5)
    return Role('readout', width, self.base_width), init

  def gain(self, residual: bool) -> RoleAndInit:
    """Role of a normalisation's gain."""
    return Role('gain', residual=residual), nn.initializers.ones

  def bias(self, residual: bool) -> RoleAndInit:
    """Role of any bias."""
    return Role('bias', residual=residual), nn.initializers.zeros

  def factors(self, role: Role) -> Factors:
    """Returns the factors on the hyperparameters of a parameter."""
    if self.kind == 'sp':
      return Factors(1.0, 1.0, 1.0, role.decays, role.kind)
    m, d, alpha = self.width_ratio, self.depth_ratio, self.depth_alpha or 0.0
    lr = role.base_fan_in / role.fan_in if role.kind == 'hidden' else 1.0
    rho, eps = m, 1 / m
    if role.residual and self.depth_alpha is not None:
      lr *= d ** (alpha - 1)
      rho *= d**alpha
      eps *= d**-alpha
    return Factors(lr, rho, eps, role.decays, role.kind)


def resolve(config: ConfigDict, model: ModelConfig) -> Parametrization:
  """Returns the rules for `model`.

  Args:
    config: the `parametrization` slice; a base shape of 0 follows the model.
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
  return Parametrization(
    kind=config.kind,
    model=model,
    base_width=base_width,
    base_depth=config.base_depth or model.num_layers,
    base_heads_dim=(
      config.base_num_heads * head_dim if config.base_num_heads else heads_dim
    ),
    base_head_dim=head_dim,
    base_mlp_dim=config.base_mlp_dim or model.mlp_dim / ratio,
    depth_alpha=_DEPTH_ALPHA[config.depth_rule],
  )


class Linear(nn.Module):
  """y = x·W (+ b) with the role of W from the table."""

  features: int
  weight: RoleAndInit
  axes: tuple[str, str]
  bias: RoleAndInit | None
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    kernel = declare(self, 'kernel', self.weight, self.axes, shape)
    y = matmul(x, kernel.astype(self.dtype))
    if self.bias is not None:
      bias = declare(self, 'bias', self.bias, self.axes[1:], shape[1:])
      y += bias.astype(self.dtype)[(None,) * (y.ndim - 1)]
    return y


def declare(
  module: nn.Module,
  name: str,
  role_and_init: RoleAndInit,
  axes: tuple[str, ...],
  shape: tuple[int, ...],
) -> jax.Array:
  """Declares a float32 parameter with its role and logical axes."""
  role, init = role_and_init

  def boxed(key: jax.Array) -> Any:
    return Parameter(init(key, shape, jnp.float32), names=axes, role=role)

  return module.param(name, boxed)
