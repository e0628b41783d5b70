"""Memory and time of a training step on chips that are not here.

From shapes, shardings and the values that the backward pass keeps: nothing is
compiled or run. See docs/scaling.md for how near it comes to measurements.
"""

import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from steepest.models import attention, remat as remat_lib
from steepest.models.config import ModelConfig
from steepest.training import (
  arrays,
  flops,
  mesh as mesh_lib,
  residuals,
  step,
  traffic,
)
from steepest.training.chips import Chip

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


class Planner:
  """Plans of one model, optimizer and batch in any setting."""

  def __init__(
    self,
    model: ModelConfig,
    make_module: Any,
    make_chain: Any,
    curvature_flops: float,
    curvature_subset: int,
    batch_size: int,
    chip: Chip,
  ):
    """Traces the model.

    Args:
      model: resolved shapes.
      make_module: (ModelConfig) → Flax module.
      make_chain: (parameters with logical axes) → optimizer chain.
      curvature_flops: of curvature estimates over those of all gradients.
      curvature_subset: they are made on one of so many sequences.
      batch_size: sequences of a step.
      chip: what it runs on.
    """
    self.model = model
    self.batch_size = batch_size
    self.chip = chip
    self._curvature_flops = curvature_flops
    self._curvature_subset = curvature_subset
    boxed = arrays.init_shapes(make_module(model), model)
    self.params = nn.unbox(boxed)
    self._params = arrays.leaves(boxed)
    chain = make_chain(boxed)
    self._opt_state = arrays.leaves(jax.eval_shape(chain.init, boxed))
    used = jax.eval_shape(
      step.rounded(chain.factors, model.compute_dtype), self.params
    )
    # Gradients have the dtypes of what the products take.
    self._gradients = [
      dataclasses.replace(a, itemsize=u.dtype.itemsize)
      for a, u in zip(self._params, jax.tree.leaves(used))
    ]
    self._kept = {
      remat: arrays.kept(model, make_module, remat)
      for remat in remat_lib.POLICIES
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
    mesh_lib.check_subset(sizes, self.batch_size, self._curvature_subset)
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
    layer, whole = share(kept.layer), share(plain.layer)
    if self._fused(sizes['sequence']):
      layer += self._of_kernel(setting.remat, rows, sizes)
      whole += self._of_kernel('none', rows, sizes)
    # While a layer is computed again, its values are there once.
    again = max(whole - layer, 0)
    summed = setting.microbatches > 1
    params = arrays.sharded(self._params, sizes)
    memory = {
      'parameters': params,
      'optimizer': arrays.sharded(self._opt_state, sizes),
      # Sums are in float32.
      'gradients': params if summed else arrays.sharded(self._gradients, sizes),
      'weights in compute dtype': self._copies(setting, sizes),
      'activations': m.num_layers * layer + share(others),
      'computed again': again,
      # Their gradient takes their place.
      'logits': share(logits),
    }
    state = memory['parameters'] + memory['optimizer']
    copies = memory['weights in compute dtype']
    forward = copies + memory['activations'] + max(memory['logits'], again)
    if summed:
      # Each slice's gradients are added as they come.
      return memory, state + memory['gradients'] + forward
    # Gradients replace activations. XLA frees copies on the way, but puts off
    # some products, whose operands stay.
    backward = memory['gradients'] + copies + layer + again
    return memory, state + max(forward, backward)

  def _of_kernel(self, remat: str, rows: int, sizes: dict[str, int]) -> int:
    """Returns bytes of a layer that are kept by a fused kernel alone.

    Its statistics, and where weights' products are kept its output too, which
    the trace, without kernels, has as a product among tokens.
    """
    m = self.model
    if remat == 'full':
      return 0
    heads = rows * m.context * m.num_heads // sizes['tensor']
    heads //= sizes['sequence']
    item = jnp.dtype(m.compute_dtype).itemsize
    return heads * (4 + (item * m.head_dim if remat == 'dots' else 0))

  def _copies(self, setting: Setting, sizes: dict[str, int]) -> int:
    """Returns bytes of weights as the matrix products take them.

    A device rounds its part once a step. With fsdp they are gathered too: all,
    from the forward to the backward pass, which leaves the parts to further
    slices; or, where layers are computed again, two layers at a time.
    """
    m = self.model
    item = jnp.dtype(m.compute_dtype).itemsize
    own = arrays.sharded(
      [
        dataclasses.replace(a, itemsize=item)
        for a, gradient in zip(self._params, self._gradients)
        if gradient.itemsize < a.itemsize
        or (m.tie_embeddings and item < 4 and 'vocab' in a.axes)
      ],
      sizes,
    )
    if sizes['fsdp'] == 1:
      return own
    block = sum(
      math.prod(a.shape)
      for a in self._params
      if len(a.shape) > 1 and not {'vocab', 'positions'} & set(a.axes)
    )
    gathered = self._matrices
    if setting.remat != 'none':
      gathered -= block - 2 * block // m.num_layers
    elif setting.microbatches == 1:
      own = 0
    return own + item * gathered // sizes['tensor']

  def _fused(self, sequence: int) -> bool:
    """Returns whether a kernel does attention, as models/attention.py picks."""
    m = self.model
    if self.chip.attention == 'splash':
      return m.context % attention.TILES[-1] == 0 and sequence == 1
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
    parts = (self._memory(s, sizes)[0] for s in (plain, setting))
    whole, some = (
      setting.microbatches * (p['activations'] + p['computed again'])
      for p in parts
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
