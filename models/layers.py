"""Shared by models: linear layers, RMSNorm, block frame, embedding, readout.

B batch, L length, D width, H heads, K key-value heads, h head dim,
V vocabulary, I inputs, O outputs.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import contextvars
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
import numpy as np

from steepest.models import attention, remat
from steepest.models.config import ModelConfig
from steepest.models.parametrization import (
  Parameter,
  Parametrization,
  RoleAndInit,
)

Layer = Callable[[jax.Array], jax.Array]
# Name of the blocks in a parameter tree with stacked arrays.
STACKED = 'block_all'
# Layers that `blocks` left out, in `first_block_only`; None outside of it.
_left_out: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar(
  'left_out', default=None
)


def declare(
  module: nn.Module,
  name: str,
  role_and_init: RoleAndInit,
  axes: tuple[str, ...],
  shape: tuple[int, ...],
) -> jax.Array:
  """Declares a float32 parameter with its role and logical axes."""
  role, init = role_and_init

  def partitioned(key: jax.Array) -> Any:
    return Parameter(init(key, shape, jnp.float32), names=axes, role=role)

  return module.param(name, partitioned)


class Linear(nn.Module):
  """y = x·W, plus b if `bias` describes it."""

  features: int
  weight: RoleAndInit
  axes: tuple[str, str]
  bias: RoleAndInit | None
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    kernel_IxO = declare(self, 'kernel', self.weight, self.axes, shape)
    y = matmul(x, kernel_IxO.astype(self.dtype))
    if self.bias is not None:
      bias_O = declare(self, 'bias', self.bias, self.axes[1:], shape[1:])
      y += bias_O.astype(self.dtype)[(None,) * (y.ndim - 1)]
    return y


class RMSNorm(nn.Module):
  """Divides features by their root mean square, in float32.

  Applies a gain if the model's normalisations have gains. The last axis holds
  the features of the residual stream or of a head.
  """

  config: ModelConfig
  rules: Parametrization
  residual: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = self.config
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + c.norm_eps)
    if c.norm_gain:
      gain = self.rules.gain(self.residual)
      gain_D = declare(self, 'gain', gain, ('norm',), x.shape[-1:])
      y *= gain_D[(None,) * (y.ndim - 1)]
    return y.astype(c.compute_dtype)


class Block(nn.Module):
  """Attention and MLP, each added to the residual stream.

  Each model defines its `norm` and `mlp`, and may `rotate` queries and keys.
  """

  config: ModelConfig
  rules: Parametrization

  @nn.compact
  def __call__(
    self,
    x_BxLxD: jax.Array,
    segment_ids_BxL: jax.Array | None,
    positions_BxL: jax.Array | None,
  ) -> jax.Array:
    scale = self.rules.residual_multiplier
    x_BxLxD += scale * self.attention(
      self.norm('attention_norm')(x_BxLxD), segment_ids_BxL, positions_BxL
    )
    x_BxLxD = remat.named(x_BxLxD, 'residual')
    x_BxLxD += scale * self.mlp(self.norm('mlp_norm')(x_BxLxD))
    return stream(x_BxLxD)

  def norm(self, name: str) -> Layer:
    """Returns the normalisation with this name, B×L×D to B×L×D."""
    raise NotImplementedError

  def rotate(
    self, x_BxLxHxh: jax.Array, positions_BxL: jax.Array | None
  ) -> jax.Array:
    """Returns queries or keys; some models rotate them by their positions."""
    return x_BxLxHxh

  def mlp(self, x_BxLxD: jax.Array) -> jax.Array:
    """Returns what the MLP adds, B×L×D."""
    raise NotImplementedError

  def attention(
    self,
    x_BxLxD: jax.Array,
    segment_ids_BxL: jax.Array | None,
    positions_BxL: jax.Array | None,
  ) -> jax.Array:
    """Returns what attention adds, B×L×D."""
    c, rules = self.config, self.rules
    h, (B, L, _) = c.head_dim, x_BxLxD.shape
    role, init = rules.hidden('width', fan_out='heads')
    query = (role, nn.initializers.zeros if c.zero_init_query else init)
    key = value = rules.hidden('width', fan_out='kv_heads')
    project = lambda name, heads, weight, axis: self.linear(
      name, heads * h, weight, ('width', axis)
    )(x_BxLxD).reshape(B, L, heads, h)
    placed = lambda name, x_BxLxHxh: self.rotate(
      self.head_norm(name, x_BxLxHxh), positions_BxL
    )
    q_BxLxHxh = project('query', c.num_heads, query, 'heads')
    k_BxLxKxh = project('key', c.num_kv_heads, key, 'kv_heads')
    y_BxLxHxh = attention.attend(
      self,
      placed('query_norm', q_BxLxHxh),
      placed('key_norm', k_BxLxKxh),
      project('value', c.num_kv_heads, value, 'kv_heads'),
      rules.attention_scale,
      segment_ids_BxL,
      positions_BxL,
    )
    output = rules.hidden('heads', writes_residual=True)
    return self.linear('output', c.width, output, ('heads', 'width'))(
      y_BxLxHxh.reshape(B, L, c.num_heads * h)
    )

  def head_norm(self, name: str, x_BxLxHxh: jax.Array) -> jax.Array:
    """Normalises the features of each head, if the model has `qk_norm`.

    Normalising queries and keys before rotary positions bounds their products
    (Dehghani et al., arXiv 2302.05442; this form, with one gain for all heads,
    is that of Qwen3, arXiv 2505.09388).
    """
    if not self.config.qk_norm:
      return x_BxLxHxh
    norm = RMSNorm(self.config, self.rules, residual=True, name=name)
    return norm(x_BxLxHxh)

  def linear(
    self, name: str, features: int, weight: RoleAndInit, axes: tuple[str, str]
  ) -> Linear:
    """Returns a linear layer, with a bias if the model has biases."""
    bias = self.rules.bias(residual=True) if self.config.bias else None
    dtype = self.config.compute_dtype
    return Linear(features, weight, axes, bias, dtype, name=name)


def blocks(
  model: Any, kind: type[nn.Module], x_BxLxD: jax.Array, *inputs: Any
) -> jax.Array:
  """Applies a model's blocks to the residual stream; returns B×L×D.

  Applies `block_0`, `block_1`, … in turn. If their parameters are stacked
  (`stack`), this is a loop over layers: the block compiles once, whatever the
  number of layers, and model.remat decides what is stored for the backward
  pass.

  Args:
    model: the calling module, with fields `config` and `rules`.
    kind: class of its blocks.
    x_BxLxD: the residual stream.
    *inputs: further arguments of every block.
  """
  c, rules = model.config, model.rules
  if not model.has_variable('params', STACKED):
    block = remat.block(c.remat, kind)
    count, left_out = c.num_layers, _left_out.get()
    if left_out is not None:
      left_out += range(1, count)
      count = 1
    for i in range(count):
      x_BxLxD = block(c, rules, name=f'block_{i}')(x_BxLxD, *inputs)
    return x_BxLxD
  one: Any = remat.block(c.remat, kind, in_loop=True)
  block = one(c, rules, parent=None)

  def body(x_BxLxD: jax.Array, params: Any) -> tuple[jax.Array, None]:
    return block.apply({'params': params}, x_BxLxD, *inputs), None

  return jax.lax.scan(body, x_BxLxD, model.get_variable('params', STACKED))[0]


@contextlib.contextmanager
def first_block_only() -> Iterator[list[int]]:
  """Makes `blocks` apply its first block alone; yields the layers left out.

  All have the same shapes, and one is traced much faster than many.
  """
  found: list[int] = []
  token = _left_out.set(found)
  try:
    yield found
  finally:
    _left_out.reset(token)


def stack(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns parameters with all blocks in one, each array with a layer axis.

  Args:
    params: a model's, with `block_0`, `block_1`, …: arrays or boxes of them.

  Raises:
    ValueError: there is no `block_0`.
  """
  names = [f'block_{i}' for i in range(len(params))]
  names = [name for name in names if name in params]
  if not names:
    raise ValueError(
      'model.scan_layers=True: the model has no block_0 (layers.blocks)'
    )

  def join(*layers: Any) -> Any:
    if isinstance(layers[0], Parameter):
      value = jnp.stack([layer.value for layer in layers])
      return layers[0].replace(value=value, names=('layers', *layers[0].names))
    on_host = isinstance(layers[0], np.ndarray)
    return np.stack(layers) if on_host else jnp.stack(layers)

  joined = jax.tree.map(
    join,
    *(params[name] for name in names),
    is_leaf=lambda x: isinstance(x, Parameter),
  )
  rest = {k: x for k, x in params.items() if k not in names}
  return {**rest, STACKED: joined}


def unstack(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns parameters with separate blocks, whether stacked or not."""
  found = dict(params)
  layers = found.pop(STACKED, None)
  for i in range(0 if layers is None else len(jax.tree.leaves(layers)[0])):
    found[f'block_{i}'] = jax.tree.map(lambda x, i=i: x[i], layers)
  return found


def stream(x_BxLxD: jax.Array) -> jax.Array:
  """Shards the residual stream over the mesh."""
  return nn.with_logical_constraint(x_BxLxD, ('batch', 'length', 'features'))


def embedding(module: nn.Module, rules: Parametrization) -> jax.Array:
  """Declares the token embedding, V×D."""
  c = rules.model
  return declare(
    module,
    'embedding',
    rules.embedding(),
    ('vocab', 'width'),
    (c.vocab_size, c.width),
  )


def look_up(
  embedding_VxD: jax.Array, tokens_BxL: jax.Array, dtype: DTypeLike
) -> jax.Array:
  """Returns the tokens' rows, B×L×D, in the given dtype.

  On a mesh, the table is gathered in that dtype like any weight, not the rows
  that are looked up; each device sums the table's gradient in float32, then
  sends it in that dtype, as for matrices.
  """
  if jax.sharding.get_abstract_mesh().size <= 1:
    return embedding_VxD[tokens_BxL].astype(dtype)
  # Resolved here: logical axes are undefined where JAX traces the backward.
  of_tokens = nn.logical_to_mesh_axes(('batch', 'length'))
  of_table = nn.logical_to_mesh_axes(('vocab', 'width'))
  spread = _Spread(jnp.dtype(dtype), of_tokens, of_table)
  return _look_up(embedding_VxD, tokens_BxL, spread)


class _Spread(NamedTuple):
  """The dtype to send in, and how a mesh splits tokens and table."""

  dtype: np.dtype
  of_tokens: Any
  of_table: Any


def _rows(
  embedding_VxD: jax.Array, tokens_BxL: jax.Array, spread: _Spread
) -> jax.Array:
  whole_VxD = nn.with_logical_constraint(
    embedding_VxD.astype(spread.dtype), ('vocab', 'features')
  )
  return whole_VxD[tokens_BxL]


_look_up = jax.custom_vjp(_rows, nondiff_argnums=(2,))


def _look_up_forward(
  embedding_VxD: jax.Array, tokens_BxL: jax.Array, spread: _Spread
):
  # The backward pass only needs the table's number of rows and its dtype.
  like_Vx0 = jnp.zeros_like(embedding_VxD, shape=(embedding_VxD.shape[0], 0))
  # Not _look_up, through which a Hessian-vector product cannot go.
  return _rows(embedding_VxD, tokens_BxL, spread), (like_Vx0, tokens_BxL)


def _look_up_backward(
  spread: _Spread, residuals: tuple[jax.Array, jax.Array], g_BxLxD: jax.Array
):
  dtype, of_tokens, of_table = spread
  like_Vx0, tokens_BxL = residuals
  vocab, width = (_names(axes) for axes in of_table)
  shape = jax.sharding.get_abstract_mesh().shape
  rows = like_Vx0.shape[0] // math.prod(shape[axis] for axis in vocab)

  def on_device(tokens: jax.Array, g: jax.Array) -> jax.Array:
    row = tokens - jax.lax.axis_index(vocab) * rows
    row = jnp.where((row >= 0) & (row < rows), row, rows)
    sums = jnp.zeros((rows, g.shape[-1]), jnp.float32)
    sums = sums.at[row].add(g.astype(jnp.float32), mode='drop').astype(dtype)
    sent = [
      axis for axes in of_tokens for axis in _names(axes) if shape[axis] > 1
    ]
    for axis in width:
      if axis in sent:
        sums = jax.lax.psum_scatter(sums, axis, scatter_dimension=1, tiled=True)
    return jax.lax.psum(sums, [axis for axis in sent if axis not in width])

  gradient_VxD = jax.shard_map(
    on_device,
    in_specs=(of_tokens, PartitionSpec(*of_tokens, None)),
    out_specs=of_table,
    check_vma=False,
  )(tokens_BxL, g_BxLxD)
  return gradient_VxD.astype(like_Vx0.dtype), None


_look_up.defvjp(_look_up_forward, _look_up_backward)


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """Returns the mesh axes in an entry of a PartitionSpec."""
  return (axes,) if isinstance(axes, str) else axes or ()


def read_out(
  module: nn.Module,
  rules: Parametrization,
  x_BxLxD: jax.Array,
  embedding_VxD: jax.Array,
  features: bool,
) -> jax.Array | tuple[jax.Array, jax.Array]:
  """Returns logits, or their two factors.

  Args:
    module: the model; declares the readout unless it is tied.
    rules: its parametrization.
    x_BxLxD: normalised residual stream.
    embedding_VxD: also the readout, if tied.
    features: whether to leave the product to the caller.

  Returns:
    Logits B×L×V in the compute dtype; with `features` the scaled stream, B×L×D,
    and the readout, V×D.
  """
  c = rules.model
  x_BxLxD *= rules.readout_multiplier
  if c.tie_embeddings:
    readout_VxD = embedding_VxD
  else:
    role, init = rules.readout()
    if c.zero_init_readout:
      init = nn.initializers.zeros
    axes, shape = ('vocab', 'width'), (c.vocab_size, c.width)
    readout_VxD = declare(module, 'readout', (role, init), axes, shape)
  if features:
    return x_BxLxD, readout_VxD
  return matmul(x_BxLxD, readout_VxD.astype(c.compute_dtype).T)


def matmul(x: jax.Array, w_IxO: jax.Array) -> jax.Array:
  """Returns x·W for x of shape (…, I), with its usual gradients.

  On CPUs, XLA is slow at the weight gradient xᵀ·g when x, which it transposes,
  has more columns than g. This computes (gᵀ·x)ᵀ there instead, which makes
  whole training steps faster (docs/performance.md).
  """
  if remat.platform() != 'cpu':
    return jnp.dot(x, w_IxO)
  return _product(x, w_IxO)


@jax.custom_vjp
def _product(x: jax.Array, w_IxO: jax.Array) -> jax.Array:
  return jnp.dot(x, w_IxO)


def _product_forward(x: jax.Array, w_IxO: jax.Array):
  return jnp.dot(x, w_IxO), (x, w_IxO)


def _product_backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array):
  x, w_IxO = residuals
  # No reshape to a matrix: batch and length may be split over devices.
  rows = tuple(range(x.ndim - 1))
  if x.shape[-1] > g.shape[-1]:
    # The barrier keeps the compiler from undoing the transposition.
    gradient_OxI = jax.lax.optimization_barrier(
      jnp.tensordot(g, x, (rows, rows))
    )
    return jnp.dot(g, w_IxO.T), gradient_OxI.T
  gradient_IxO = jax.lax.optimization_barrier(jnp.tensordot(x, g, (rows, rows)))
  return jnp.dot(g, w_IxO.T), gradient_IxO


_product.defvjp(_product_forward, _product_backward)
