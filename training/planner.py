"""Memory and time of a training step on chips that are not here.

From shapes, shardings and the values that the backward pass keeps: nothing is
compiled or run. See docs/scaling.md for how near it comes to measurements.
"""

import collections
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import AxisType

from steepest.models import remat as remat_lib
from steepest.models import splash
from steepest.models.config import ModelConfig
from steepest.training import flops
from steepest.training import mesh as mesh_lib
from steepest.training import residuals
from steepest.training import traffic
from steepest.training.chips import Chip
from steepest.training.loss import cross_entropy

# Share of the memory that arrays may fill: the rest is the runtime's, and lost
# between them.
USABLE = 0.92
# Shares of the peaks that large matrix products (798 of 989 TFLOP/s) and
# copies (3.0 of 3.35 TB/s) reach; measured on an H100, assumed elsewhere.
MATMUL = 0.80
COPY = 0.90
# Bytes that element-wise work moves for each byte of a kept value, a third of
# them forward; fitted to JAX's steps of GPT-2 124M and 2.65B on an H100.
TRAFFIC_PER_KEPT = 10.5
# Times that logits, or their gradient, are written or read: by the product, the
# highest, the sum, the gradient (twice) and the two products behind it.
LOGIT_PASSES = 7


@dataclasses.dataclass(frozen=True)
class Setting:
  """What may be changed so that a run fits.

  Attributes:
    mesh: size of each axis.
    microbatches: slices of a batch.
    remat: a policy of models/remat.py.
  """

  mesh: traffic.Sizes
  microbatches: int
  remat: str

  @property
  def devices(self) -> int:
    return math.prod(self.mesh)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a setting takes on each device.

  Attributes:
    setting: it.
    memory: bytes by part.
    peak: bytes at the fullest moment.
    capacity: bytes that may be used.
    flops: of a step on all devices, by the convention of training/flops.py.
    traffic: bytes that a device sends in a step, by mesh axis.
    seconds: of a step by part.
    step_seconds: of a step; communication of the axes data and fsdp hides
      behind the computation.
    mfu: by the convention of training/flops.py.
    bound: what takes the time: 'compute', 'memory' or 'network'.
  """

  setting: Setting
  memory: dict[str, int]
  peak: int
  capacity: int
  flops: float
  traffic: dict[str, float]
  seconds: dict[str, float]
  step_seconds: float
  mfu: float
  bound: str

  @property
  def fits(self) -> bool:
    return self.peak <= self.capacity


@dataclasses.dataclass(frozen=True)
class _Kept:
  """Values of one layer and of what surrounds the layers."""

  layer: tuple[residuals.Value, ...]
  rest: tuple[residuals.Value, ...]


class Planner:
  """Plans of one model, optimizer and batch in any setting."""

  def __init__(
    self,
    model: ModelConfig,
    make_module: Any,
    make_chain: Any,
    curvature_flops: float,
    batch_size: int,
    chip: Chip,
  ):
    """Traces the model.

    Args:
      model: resolved shapes.
      make_module: (ModelConfig) → Flax module.
      make_chain: (parameters with logical axes) → optimizer chain.
      curvature_flops: of curvature estimates over those of all gradients.
      batch_size: sequences of a step.
      chip: what it runs on.
    """
    self.model = model
    self.batch_size = batch_size
    self.chip = chip
    self._curvature_flops = curvature_flops
    boxed = _init_shapes(make_module(model), model)
    self.params = nn.unbox(boxed)
    self._params = _leaves(boxed)
    self._opt_state = _leaves(
      jax.eval_shape(lambda p: make_chain(p).init(p), boxed)
    )
    self._kept = {
      remat: _kept(model, make_module, remat) for remat in remat_lib.POLICIES
    }

  def plan(self, setting: Setting) -> Plan:
    """Returns what a setting takes.

    Raises:
      ValueError: a size does not divide.
    """
    sizes = dict(zip(mesh_lib.AXES, setting.mesh))
    mesh = AbstractMesh(
      setting.mesh, mesh_lib.AXES, axis_types=(AxisType.Auto,) * len(sizes)
    )
    mesh_lib.check(mesh, self.model, self.batch_size, setting.microbatches)
    memory, peak = self._memory(setting, sizes)
    step_flops = flops.per_token(self.params, self.model) * self._tokens
    sent = traffic.per_device(
      sizes,
      self.model,
      self._matrices,
      self._tokens / (sizes['data'] * sizes['fsdp'] * sizes['sequence']),
      setting.microbatches,
      setting.remat,
    )
    seconds = self._seconds(setting, memory, step_flops, sent)
    at_work = seconds['compute'] + seconds['memory']
    hidden = seconds['network'] - seconds['exposed network']
    total = (
      max(at_work, hidden) + seconds['exposed network'] + seconds['update']
    )
    name = max(('compute', 'memory'), key=lambda k: seconds[k])
    if seconds['network'] > at_work:
      name = 'network'
    return Plan(
      setting,
      memory,
      peak,
      int(USABLE * self.chip.memory),
      step_flops,
      sent,
      seconds,
      total,
      step_flops / (total * setting.devices * self.chip.peak),
      name,
    )

  @property
  def _tokens(self) -> int:
    return self.batch_size * self.model.context

  @property
  def _matrices(self) -> int:
    """Parameters that pass through matrix products."""
    return sum(math.prod(a.shape) for a in self._params if len(a.shape) > 1)

  def _updated(self, memory: dict[str, int]) -> float:
    """Returns the bytes that an update reads and writes.

    Parameters and state are read and written, gradients read: 28 bytes a
    parameter for AdamW, 20 for Lion. A curvature is read alone: 24 for Sophia.
    """
    params, state = memory['parameters'], memory['optimizer']
    read_only = params if self._curvature_flops else 0
    return 3 * params + 2 * state - read_only

  def _memory(
    self, setting: Setting, sizes: dict[str, int]
  ) -> tuple[dict[str, int], int]:
    m = self.model
    parts = sizes['data'] * sizes['fsdp'] * setting.microbatches
    rows = self.batch_size // parts
    share = lambda values: sum(self._bytes(v, rows, sizes) for v in values)
    kept, plain = self._kept[setting.remat], self._kept['none']
    logits = [v for v in kept.rest if v.shape[-1] == m.vocab_size]
    others = [v for v in kept.rest if v not in logits]
    statistics = rows * m.context * m.num_heads * 4 // sizes['tensor']
    layer = share(kept.layer)
    # While a layer is computed again, its values are there once.
    again = 0 if setting.remat == 'none' else share(plain.layer) - layer
    if setting.remat != 'full' and self._fused(sizes['sequence']):
      layer += statistics // sizes['sequence']
    params = _sharded(self._params, sizes)
    memory = {
      'parameters': params,
      'optimizer': _sharded(self._opt_state, sizes),
      'gradients': params,
      'weights in compute dtype': self._copies(setting, sizes),
      'activations': m.num_layers * layer + again + share(others),
      # And their gradient.
      'logits': 2 * share(logits),
    }
    state = memory['parameters'] + memory['optimizer']
    copies = memory['weights in compute dtype']
    forward = copies + memory['activations'] + memory['logits']
    # Gradients replace activations, unless they are summed over slices.
    if setting.microbatches > 1:
      return memory, state + memory['gradients'] + forward
    backward = memory['gradients'] + copies + layer + again
    return memory, state + max(forward, backward)

  def _copies(self, setting: Setting, sizes: dict[str, int]) -> int:
    """Returns bytes of weights as the matrix products take them.

    They live from the forward to the backward pass, unless layers are
    computed again; with fsdp they are gathered.
    """
    item = jnp.dtype(self.model.compute_dtype).itemsize
    if item == 4 and sizes['fsdp'] == 1:
      return 0
    layers = self.model.num_layers
    block = sum(
      math.prod(a.shape)
      for a in self._params
      if len(a.shape) > 1 and not {'vocab', 'positions'} & set(a.axes)
    )
    rest = self._matrices - block
    alive = block if setting.remat == 'none' else 2 * block // layers
    return item * (alive + rest) // sizes['tensor']

  def _fused(self, sequence: int) -> bool:
    """Returns whether a kernel does attention, as models/attention.py picks."""
    m = self.model
    if self.chip.attention == 'splash':
      return m.context % splash.TILES[-1] == 0 and sequence == 1
    half = jnp.dtype(m.compute_dtype).itemsize == 2
    even = sequence == 1 or m.context // sequence % 2 == 0
    return self.chip.attention == 'cudnn' and half and even

  def _bytes(
    self, value: residuals.Value, rows: int, sizes: dict[str, int]
  ) -> int:
    """Returns a device's bytes of a value that `rows` sequences have."""
    m, tensor = self.model, sizes['tensor']
    shape = value.shape
    scores = len(shape) > 3 and shape.count(m.context) == 2
    if scores and self._fused(sizes['sequence']):
      return 0
    whole = value.elements * value.itemsize // residuals.ROWS * rows
    whole //= sizes['sequence']
    # Residual stream and norms are whole on each device of the axis tensor.
    heads = len(shape) > 3 and {m.num_heads, m.num_kv_heads} & set(shape)
    wide = shape[-1] in (m.mlp_dim, m.vocab_size)
    return whole // tensor if heads or wide else whole

  def _seconds(
    self,
    setting: Setting,
    memory: dict[str, int],
    step_flops: float,
    sent: dict[str, float],
  ) -> dict[str, float]:
    m, chip, n = self.model, self.chip, setting.devices
    attention = (
      12.0 * m.num_layers * m.num_heads * m.head_dim * m.context * self._tokens
    )
    # Fused kernels leave out what the causal mask hides of whole sequences.
    sequence = setting.mesh[mesh_lib.AXES.index('sequence')]
    fused = self._fused(sequence)
    done = step_flops - (attention / 2 if fused and sequence == 1 else 0)
    if setting.remat == 'full':
      readout = 6.0 * m.vocab_size * m.width * self._tokens
      done += (done - readout) / 3
    elif setting.remat != 'none' and not fused:
      done += attention / 3
    done *= 1 + self._curvature_flops
    plain = dataclasses.replace(setting, remat='none')
    sizes = dict(zip(mesh_lib.AXES, setting.mesh))
    whole, some = (
      self._memory(s, sizes)[0]['activations'] * setting.microbatches
      for s in (plain, setting)
    )
    # What is computed again is written and read as in the forward pass.
    kept = whole + max(whole - some, 0) / 3
    item = jnp.dtype(m.compute_dtype).itemsize
    logits = item * self._tokens * m.vocab_size / n
    moved = (TRAFFIC_PER_KEPT * kept + LOGIT_PASSES * logits) * (
      1 + self._curvature_flops
    )
    rate = chip.bandwidth * COPY
    links = traffic.seconds(sent, sizes, chip)
    return {
      'compute': done / (n * chip.peak * MATMUL),
      'memory': moved / rate,
      'update': self._updated(memory) / rate,
      'network': sum(links.values()),
      'exposed network': links['tensor'] + links['sequence'],
    }


def _init_shapes(module: nn.Module, model: ModelConfig) -> Any:
  tokens_1xL = jnp.zeros((1, model.context), jnp.int32)
  return jax.eval_shape(
    lambda: module.init(jax.random.key(0), tokens_1xL)['params']
  )


@dataclasses.dataclass(frozen=True)
class _Array:
  """Shape, logical axes and bytes of an element."""

  shape: tuple[int, ...]
  axes: tuple[Any, ...]
  itemsize: int


def _leaves(boxed: Any) -> list[_Array]:
  arrays = jax.tree.leaves(
    boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )
  return [
    _Array(tuple(x.value.shape), tuple(x.names), x.value.dtype.itemsize)
    if isinstance(x, nn.LogicallyPartitioned)
    else _Array(tuple(x.shape), (), x.dtype.itemsize)
    for x in arrays
  ]


def _sharded(arrays: list[_Array], sizes: dict[str, int]) -> int:
  """Returns the bytes of a device's part of arrays."""
  # Parameters have no batch: each of their axes goes to one mesh axis.
  axes = {name: axis for name, axis in mesh_lib.RULES if isinstance(axis, str)}
  total = 0
  for a in arrays:
    parts = [sizes[axes[name]] for name in a.axes if name in axes]
    total += a.itemsize * math.ceil(math.prod(a.shape) / math.prod(parts))
  return total


def _kept(model: ModelConfig, make_module: Any, remat: str) -> _Kept:
  """Traces one and two layers: the difference is what a layer keeps."""
  one, two = (
    _stored(
      dataclasses.replace(model, num_layers=layers, remat=remat), make_module
    )
    for layers in (1, 2)
  )
  layer = _without(two, one)
  return _Kept(tuple(layer), tuple(_without(one, layer)))


def _stored(model: ModelConfig, make_module: Any) -> list[residuals.Value]:
  module = make_module(model)
  params = nn.unbox(_init_shapes(module, model))
  tokens_BxL = jax.ShapeDtypeStruct((residuals.ROWS, model.context), jnp.int32)

  def loss(params: Any, inputs_BxL: jax.Array, targets_BxL: jax.Array) -> Any:
    logits_BxLxV = module.apply({'params': params}, inputs_BxL)
    return cross_entropy(logits_BxLxV, targets_BxL).mean()

  return residuals.stored(loss, params, tokens_BxL, tokens_BxL)


def _without(
  values: list[residuals.Value], others: list[residuals.Value]
) -> list[residuals.Value]:
  """Returns `values` less one of the same shape for each of `others`."""
  counts = collections.Counter((v.shape, v.itemsize) for v in others)
  rest = []
  for value in values:
    key = (value.shape, value.itemsize)
    if counts[key]:
      counts[key] -= 1
    else:
      rest.append(value)
  return rest
