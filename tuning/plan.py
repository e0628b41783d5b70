"""Plans what a run will take, before paying for any of it.

Nothing is compiled or run. Parameters and optimizer state are exact, from
their shapes and shardings. All else is an estimate: activations by the remat
policy, FLOPs by formula, times by the MFU measured on the chip
(training/chips.py). docs/scaling.md compares it with measurements.

B sequences, L tokens of one, D width, H heads, K key-value heads, h head
dimension, F width of the MLP, V vocabulary.
"""

from collections.abc import Mapping
import dataclasses
import functools
import itertools
import math
import pathlib
from typing import Any

from flax import traverse_util
import jax
from jax import numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from steepest.data import flat, manifest
from steepest.models import attention, config as model_config, layers, remat
from steepest.models.config import ModelConfig
from steepest.optimizers import build, costs
from steepest.training import (
  chips,
  flops,
  mesh as mesh_lib,
  run as run_lib,
  step as step_lib,
)
from steepest.training.state import Setup

# Share of the memory that arrays may fill. The runtime and the gaps between
# arrays take the rest.
USABLE = 0.92
# Factor between the model's size and that of the measured MFU, from which on
# the plan warns.
_FAR = 10
# Share of a step's time by which a plan has to be faster to count as such.
_TIE = 0.01
# Parameters outside the blocks.
_OUTSIDE = ('embedding', 'positions', 'readout')


@dataclasses.dataclass(frozen=True)
class StepPlan:
  """The cost of a training step.

  Attributes:
    mesh: size of each axis.
    parameters: of the model.
    memory: bytes per device, by use.
    peak: most bytes in use per device.
    capacity: usable bytes per device.
    flops: of all devices, by the convention of training/flops.py.
    update_flops: further FLOPs, of the optimizer's matrix products.
    update_bytes: of all devices, that an update reads and writes.
    tokens: of all devices.
    seconds: NaN if no MFU is known.
    mfu: that the seconds assume; None if unknown.
    checkpoint: bytes of one.
    sent: operands and results of a step's collectives, bytes per device, by
      purpose.
    exposed: seconds of a step in which a device only communicates; NaN if the
      link speed is unknown.
  """

  mesh: dict[str, int]
  parameters: int
  memory: dict[str, int]
  peak: int
  capacity: int
  flops: float
  update_flops: float
  update_bytes: int
  tokens: int
  seconds: float
  mfu: chips.Mfu | None
  checkpoint: int
  sent: dict[str, int]
  exposed: float

  @property
  def devices(self) -> int:
    return math.prod(self.mesh.values())

  @property
  def fits(self) -> bool:
    return self.peak <= self.capacity

  @property
  def far(self) -> bool:
    """Whether the MFU is that of a model of a very different size."""
    if self.mfu is None:
      return False
    return not 1 / _FAR < self.mfu.parameters / self.parameters < _FAR

  @property
  def basis(self) -> str:
    """The assumption behind the seconds."""
    trust = '; far from this size: less than it takes' if self.far else ''
    return f'an MFU of {self.mfu}{trust}'

  @property
  def waiting(self) -> float:
    """Seconds of a step, with those that are not overlapped."""
    return self.seconds + self.exposed

  def hours(self, steps: int) -> float:
    """Returns the hours of a run's steps."""
    return steps * self.seconds / 3600


def vocab_size(config: ConfigDict) -> int:
  """Returns the rows of the embedding, from the data if necessary.

  Raises:
    ValueError: neither config nor data tells.
  """
  if config.model.vocab_size:
    return config.model.vocab_size
  kind, _, name = config.data.source.partition(':')
  path = pathlib.Path(name).expanduser()
  if kind == 'shards' and (path / 'manifest.json').exists():
    return manifest.load(path).tokenizer.vocab_size
  if kind == 'flat' and path.exists():
    return flat.contents(path).max_id + 1
  raise ValueError(
    f'model.vocab_size=0 and data.source={config.data.source!r} is not here: '
    'set model.vocab_size'
  )


def mesh_sizes(config: ConfigDict, devices: int) -> dict[str, int]:
  """Returns the size of each mesh axis on `devices`.

  Raises:
    ValueError: the mesh does not fit them, or leaves some idle.
  """
  sizes = mesh_lib.sizes(config.mesh, devices)
  if math.prod(sizes.values()) < devices:
    raise ValueError(
      f'mesh: {sizes} does not fit {devices} devices: set mesh.data=-1'
    )
  return sizes


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
  """Returns a mesh of devices that need not be here."""
  return AbstractMesh(
    tuple(sizes.values()), mesh_lib.AXES, axis_types=(AxisType.Auto,) * 4
  )


def plan(config: ConfigDict, chip: chips.Chip, devices: int) -> StepPlan:
  """Returns the plan of a run's step on `devices` of a chip.

  Raises:
    ValueError: the configuration is inconsistent.
  """
  m = model_config.resolve(config.model, vocab_size(config), config.dtype)
  sizes = mesh_sizes(config, devices)
  setup = run_lib.make_setup(config, m, mesh=abstract_mesh(sizes))
  curvature = 0.0
  if setup.chain.wants_curvature:
    o = build.settings(setup.chain.optimizer, config.optimizer)
    curvature = flops.of_estimate(o['hessian_estimator'], o['hessian_subset'])
    curvature /= o['hessian_every']
  sent = _sent(setup, sizes)
  memory, peak = _memory(setup, sizes, _fused(m, chip, sizes), sent)
  tokens = config.batch_size * m.context
  params = setup.shapes.params
  of_step = flops.per_token(params, m) * tokens
  update = costs.update_flops(setup.chain, params)
  count = flops.count(params)['parameters']
  mfu = chip.mfu(count)
  seconds = of_update = math.nan
  if mfu is not None:
    readout = 6.0 * m.vocab_size * m.width * tokens
    again = (of_step - readout) / 3 if m.remat == 'full' else 0.0
    rate = devices * chip.peak * mfu.share
    of_update = update / rate * devices / _sharing(setup, sizes)
    seconds = (of_step + again) * (1 + curvature) / rate + of_update
  return StepPlan(
    sizes,
    count,
    memory,
    peak,
    int(USABLE * chip.memory),
    of_step,
    update,
    costs.update_bytes(setup.chain, params, setup.shapes.opt_state),
    tokens,
    seconds,
    mfu,
    _bytes(setup.shapes),
    sent,
    _exposed(setup, sizes, sent, chip, seconds, of_update),
  )


def fastest(
  config: ConfigDict, chip: chips.Chip, devices: int
) -> tuple[dict[str, Any], StepPlan] | None:
  """Returns keys that make a run's step fastest where it fits, and its plan.

  Chooses among policies of recomputation, an optimizer state that is split
  over copies or not, layers by loop or one by one, and numbers of
  micro-batches, none of which changes what is computed. Of equally fast ones,
  the given one, else the simplest.

  Returns:
    The keys that differ from the configuration's; None if nothing fits.

  Raises:
    ValueError: the configuration is inconsistent.
  """
  sizes = mesh_sizes(config, devices)
  best: tuple[dict[str, Any], StepPlan] | None = None

  def fits(keys: dict[str, Any]) -> bool:
    nonlocal best
    changed = ConfigDict(config.to_dict())
    changed.update_from_flattened_dict(keys)
    try:
      found = plan(changed, chip, devices)
    except ValueError:
      # Not every model's layers can be looped over.
      if keys:
        return False
      raise
    if found.fits and (
      best is None or found.waiting < (1 - _TIE) * best[1].waiting
    ):
      best = keys, found
    return found.fits

  fits({})
  rows = config.batch_size // (sizes['data'] * sizes['fsdp'])
  counts = [2**n for n in range(rows.bit_length()) if rows % 2**n == 0]
  # Of these, recomputing or dividing more than what fits is never faster.
  over_data = (False, True) if sizes['data'] > 1 else (False,)
  for split, scan in itertools.product(over_data, (False, True)):
    keys: dict[str, Any] = {
      'mesh.shard_optimizer_over_data': split,
      'model.scan_layers': scan,
    }
    for policy in remat.POLICIES:
      keys['model.remat'] = policy
      least = (n for n in counts if fits(keys | {'microbatches': n}))
      if next(least, None) == 1:
        break
  if best is None:
    return None
  given = traverse_util.flatten_dict(config.to_dict(), sep='.')
  return {k: v for k, v in best[0].items() if v != given[k]}, best[1]


def _sent(setup: Setup, sizes: Mapping[str, int]) -> dict[str, int]:
  """Returns bytes of a device's collectives, by purpose.

  Counts shard and whole of each matrix in the compute dtype: gathered for the
  forward pass, again for the backward pass of layers that are recomputed or
  looped over, and scattered as a gradient; shards are reduced over replicas.
  Along `tensor`, each pass reduces two residual streams per layer, and two
  outside. Includes the optimizer's exchanges if it declares them; leaves out
  gains and biases.
  """
  m, n = setup.model, setup.microbatches
  item = jnp.dtype(m.compute_dtype).itemsize
  own = _matrices(setup, 'embedding', 'hidden', 'readout')
  again = _matrices(setup, 'hidden') if _gathers_again(m) else 0
  data, fsdp = sizes['data'], sizes['fsdp']
  whole = n * item * (fsdp + 1) if fsdp > 1 else 0
  sent = {
    'gathered': whole * (own + again),
    'scattered': whole * own,
    # Sums over micro-batches are in float32.
    'reduced': 2 * own * (item if n == 1 else 4) if data > 1 else 0,
  }
  assert setup.spec is not None
  if setup.spec.mesh.shard_optimizer_over_data and data > 1:
    # Each replica updates a part of the parameters.
    sent['gathered'] += 4 * own * (data + 1) // data
  sent['reduced'] += _streams(setup, sizes)
  shapes = setup.shapes
  exchanged = costs.exchanged_bytes(
    setup.chain, shapes.params, shapes.opt_state
  )
  if exchanged:
    sent['exchanged'] = exchanged
  return sent


def _sharing(setup: Setup, sizes: Mapping[str, int]) -> int:
  """Returns how many devices share the work of the optimizer's exchange.

  Those of a copy of the model, if it has several and the state is not split
  over copies (optimizers/spread.py).
  """
  assert setup.spec is not None
  copy = sizes['fsdp'] * sizes['tensor']
  apart = setup.chain.optimizer.exchanged is not None and copy > 1
  if apart and not setup.spec.mesh.shard_optimizer_over_data:
    return copy
  return math.prod(sizes.values())


def _exposed(
  setup: Setup,
  sizes: Mapping[str, int],
  sent: Mapping[str, int],
  chip: chips.Chip,
  seconds: float,
  of_update: float,
) -> float:
  """Returns the seconds in which a device only communicates.

  As compiled for H100s: the reductions along `tensor` in the forward pass, and
  those over replicas after the last backward pass (all of them if micro-batches
  are summed, else the embedding's and the first layer's). Everything if the
  scheduler is off. At least the communication that exceeds the computation. The
  optimizer's exchange, at the speed of the slowest of its links, overlaps only
  with its own products, since clipping needs all gradients first.

  Args:
    setup: of the run, on an abstract mesh.
    sizes: of that mesh.
    sent: see `_sent`.
    chip: its links.
    seconds: of a step's computation; NaN if unknown.
    of_update: of which in the optimizer's matrix products.
  """
  m, fsdp = setup.model, sizes['fsdp']
  devices = math.prod(sizes.values())
  copy = devices // sizes['data']
  time = lambda size, span: size / chip.bandwidth(span) if size else 0.0
  # Of shard and whole, the other shards are received.
  moved = (sent['gathered'] + sent['scattered']) * (fsdp - 1) / (fsdp + 1)
  of_weights = time(moved, copy)
  streams = _streams(setup, sizes)
  of_streams = time(streams, copy // fsdp)
  of_copies = time(sent['reduced'] - streams, devices)
  last = 1.0
  if setup.microbatches == 1:
    of = functools.partial(_matrices, setup)
    last = of('embedding') + of('hidden') / m.num_layers
    last /= of('embedding', 'hidden', 'readout')
  alone = of_streams / 2 + of_copies * last
  if chip.is_gpu and not step_lib.hides(m):
    alone = of_streams + of_copies + of_weights
  in_all = of_streams + of_copies + of_weights
  exchange = time(sent.get('exchanged', 0) / 2, _sharing(setup, sizes))
  if math.isnan(seconds):
    return alone + exchange
  alone += max(exchange - of_update, 0.0)
  return max(in_all + exchange - seconds, alone)


def _gathers_again(m: ModelConfig) -> bool:
  """Returns whether a layer's weights are gathered in both passes."""
  return m.remat != 'none' or m.scan_layers


def _matrices(setup: Setup, *kinds: str) -> int:
  """Returns the elements of a device's shards of parameters of some roles."""
  shards = jax.tree.leaves(_shards(setup.shapes.params))
  factors = jax.tree.leaves(setup.chain.factors)
  return sum(x.size for f, x in zip(factors, shards) if f.kind in kinds)


def _streams(setup: Setup, sizes: Mapping[str, int]) -> int:
  """Returns the bytes of residual streams reduced along `tensor`."""
  m, split = setup.model, sizes['data'] * sizes['fsdp'] * sizes['sequence']
  tokens = setup.batch_size * m.context // split
  item = jnp.dtype(m.compute_dtype).itemsize
  count = 4 * m.num_layers + 2 if sizes['tensor'] > 1 else 0
  return count * 2 * item * tokens * m.width


def _fused(m: ModelConfig, chip: chips.Chip, sizes: Mapping[str, int]) -> bool:
  """Returns whether attention is fused, as models/attention.py decides."""
  sequence = sizes['sequence']
  if chip.attention == 'splash':
    return m.context % attention.TILES[-1] == 0 and sequence == 1
  half = jnp.dtype(m.compute_dtype).itemsize == 2
  even = sequence == 1 or m.context // sequence % 2 == 0
  return chip.attention == 'cudnn' and half and even


def _shards(tree: Any) -> Any:
  """Returns the shapes of a device's shards of arrays."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype),
    tree,
  )


def _bytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _memory(
  setup: Setup, sizes: Mapping[str, int], fused: bool, sent: Mapping[str, int]
) -> tuple[dict[str, int], int]:
  """Returns a device's bytes by use, and its peak.

  Args:
    setup: of the run, on an abstract mesh.
    sizes: of that mesh.
    fused: whether attention is fused.
    sent: see `_sent`.
  """
  m, microbatches = setup.model, setup.microbatches
  params, shards = setup.shapes.params, _shards(setup.shapes.params)
  # As used in matrix products; gradients have the same dtypes.
  used = jax.eval_shape(functools.partial(step_lib.rounded, setup), shards)
  item = jnp.dtype(m.compute_dtype).itemsize
  rows = setup.batch_size // (sizes['data'] * sizes['fsdp'] * microbatches)
  tokens = rows * m.context // sizes['sequence']
  gated = any('mlp_gate' in path for path in traverse_util.flatten_dict(params))
  kept = lambda remat: _kept(m, remat, gated, fused, sizes['tensor'])
  layer, whole = tokens * kept(m.remat), tokens * kept('none')
  # While a layer is recomputed, all its values are in memory once.
  again = whole - layer
  # The embedding's output, and the last norm's input and output.
  around = tokens * 2 * item * m.width
  summed = microbatches > 1
  # A loop over layers returns their gradients together before they are added.
  looped = used[layers.STACKED] if summed and m.scan_layers else ()
  copies = _copies(m, sizes, microbatches, params, shards, used)
  memory = {
    'parameters': _bytes(shards),
    'optimizer': _bytes(_shards(setup.shapes.opt_state)),
    # Sums over micro-batches are in float32.
    'gradients': _bytes(shards if summed else used) + _bytes(looped),
    'weights in compute dtype': copies,
    'activations': m.num_layers * layer + around,
    'computed again': again,
    # Their gradient overwrites them.
    'logits': tokens * item * m.vocab_size // sizes['tensor'],
    # What the optimizer receives, and what it sends back.
    'matrices exchanged': sent.get('exchanged', 0) // 2,
  }
  state = memory['parameters'] + memory['optimizer']
  update = memory['gradients'] + memory['matrices exchanged']
  forward = copies + memory['activations'] + max(memory['logits'], again)
  if summed:
    forward += memory['gradients']
    return memory, state + max(forward, update)
  # Gradients replace activations. XLA frees copies on the way, but defers some
  # products, whose operands stay.
  backward = memory['gradients'] + copies + layer + again
  return memory, state + max(forward, backward, update)


def _kept(
  m: ModelConfig, remat: str, gated: bool, fused: bool, tensor: int
) -> int:
  """Returns the bytes per token that a layer keeps for its backward pass.

  The count of Korthikanti et al. (arXiv 2205.05198, section 4.1) without
  dropout, by the policies of models/remat.py. With `none`: input and output of
  both norms, queries, keys, values, attention's output, and input and output of
  the MLP's activation.

  Args:
    m: shapes.
    remat: the policy.
    gated: whether the MLP has a gate.
    fused: whether attention is fused. If not, L×L scores are kept in float32
      and in the compute dtype.
    tensor: size of that mesh axis, which splits heads and MLP.
  """
  item = jnp.dtype(m.compute_dtype).itemsize
  if remat == 'full':
    return item * m.width
  none = remat == 'none'
  heads, inputs = m.num_heads * m.head_dim, 2 if gated else 1
  # Policy `dots` keeps the product with the values only if a kernel does it.
  outputs = heads if fused or remat != 'dots' else 0
  queries = heads + 2 * m.num_kv_heads * m.head_dim
  mlp = (inputs + (1 if none else 0)) * m.mlp_dim
  split = item * (queries + outputs + mlp)
  if fused:
    # Each head's normaliser.
    split += 4 * m.num_heads
  elif none:
    split += (4 + item) * m.num_heads * m.context
  return item * (4 if none else 2) * m.width + split // tensor


def _copies(
  m: ModelConfig,
  sizes: Mapping[str, int],
  microbatches: int,
  params: Any,
  shards: Any,
  used: Any,
) -> int:
  """Returns the bytes of the weights as used in matrix products.

  A device rounds its shard once a step. With fsdp, weights are gathered too:
  all, from the forward to the backward pass, which leaves the shards for
  further micro-batches; or, if both passes gather, two layers at a time.
  """
  item = jnp.dtype(m.compute_dtype).itemsize
  pairs = zip(jax.tree.leaves(shards), jax.tree.leaves(used), strict=True)
  own = item * sum(u.size for s, u in pairs if u.dtype != s.dtype)
  if m.tie_embeddings and item < 4:
    own += item * shards['embedding'].size
  if sizes['fsdp'] == 1:
    return own
  matrices = lambda tree: sum(
    x.size for x in jax.tree.leaves(tree) if x.ndim > 1
  )
  gathered = matrices(params)
  if _gathers_again(m):
    block = gathered - matrices([params[k] for k in params if k in _OUTSIDE])
    gathered -= block - 2 * block // m.num_layers
  elif microbatches == 1:
    own = 0
  return own + item * gathered // sizes['tensor']


def cost(hours: float, price: float) -> str:
  """Returns the cost of chip-hours as a clause; '' without a price."""
  return f', ${hours * price:,.2f} at ${price:g} a chip-hour' if price else ''
