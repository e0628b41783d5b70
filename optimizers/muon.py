"""Muon (Jordan et al. 2024; Liu et al., arXiv 2502.16982), from Optax.

Other optimizers here that orthogonalise take their Newton-Schulz iterations
from this file.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
import optax
from optax import contrib

from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import MUP, Hyper, Optimizer, lr, momentum
from steepest.optimizers.trees import Number, average

# Root mean square of an update's entries, as for AdamW (arXiv 2502.16982).
RMS = 0.2
# Jordan's coefficients; singular values end between 0.68 and 1.13.
JORDAN = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# How a mesh splits each matrix; None: not at all, or unknown.
Layout = Sequence[PartitionSpec] | None
_AXES = contrib.MuonDimensionNumbers(-2, -1)
PRECISION = Hyper(
  'momentum',
  static=True,
  choices=('momentum', 'bfloat16'),
  meaning='Newton-Schulz iterations in the precision of the momentum, or less.',
)


def orthogonalize(
  matrices: Sequence[jax.Array],
  precision: str = 'momentum',
  coefficients: tuple[float, float, float] = JORDAN,
  iterations: int = _ITERATIONS,
  eps: float = 1e-7,
  layout: Layout = None,
) -> list[jax.Array]:
  """Returns U·Vᵀ of each U·Σ·Vᵀ, with singular values only near 1.

  Starts at X = G / (|G| + ε) and repeats X ← a·X + (b·A + c·A²)·X with
  A = X·Xᵀ. Axes before the last two are layers, each with its own matrix.

  Args:
    matrices: of any shapes.
    precision: 'momentum' (that of the matrices) or 'bfloat16'.
    coefficients: a, b and c.
    iterations: how many.
    eps: added to the norm.
    layout: how a mesh splits each matrix; each device is then given whole ones.
  """
  newton_schulz = contrib.scale_by_muon(
    coefficients,
    iterations,
    # No momentum: use the matrices as they are.
    beta=0.0,
    eps=eps,
    nesterov=False,
    weight_dimension_numbers=lambda found: [_AXES] * len(found),
  )
  wide = list(matrices)
  if precision == 'bfloat16':
    matrices = [x.astype(jnp.bfloat16) for x in wide]

  def iterate(xs: Sequence[jax.Array]) -> list[jax.Array]:
    return newton_schulz.update(list(xs), newton_schulz.init(list(xs)))[0]

  mesh = jax.sharding.get_abstract_mesh()
  if layout is None or mesh.size <= 1:
    found = iterate(matrices)
  else:
    found = _each_on_one_device(iterate, matrices, layout, mesh)
  return [x.astype(w.dtype) for x, w in zip(found, wide)]


def _each_on_one_device(
  fn: Callable[[Sequence[jax.Array]], list[jax.Array]],
  matrices: Sequence[jax.Array],
  layout: Sequence[PartitionSpec],
  mesh: AbstractMesh,
) -> list[jax.Array]:
  """Returns fn(matrices), computing each matrix on one device only.

  Matrices of equal shape and layout are stacked, and each stack is spread over
  the devices: each device sends its shards once and its results once.
  """
  alike: dict[Any, list[int]] = {}
  for i, (x, spec) in enumerate(zip(matrices, layout, strict=True)):
    alike.setdefault((x.shape, spec), []).append(i)
  found: list[jax.Array] = list(matrices)
  for (shape, spec), members in alike.items():
    count, before = len(members), len(shape) - 2
    stack = jnp.stack([matrices[i] for i in members])
    stack = stack.reshape(-1, *shape[before:])
    # Pad to the same number for each device.
    extra = -stack.shape[0] % mesh.size
    stack = jnp.pad(stack, ((0, extra), (0, 0), (0, 0)))
    stages = _stages(tuple(spec)[before:], mesh)
    for stage in stages:
      stack = jax.lax.with_sharding_constraint(stack, stage)
    (stack,) = fn([stack])
    for stage in reversed(stages):
      stack = jax.lax.with_sharding_constraint(stack, stage)
    results = stack[: stack.shape[0] - extra].reshape(count, *shape)
    for n, i in enumerate(members):
      found[i] = results[n]
  return found


def _stages(spec: Sequence[Any], mesh: AbstractMesh) -> list[PartitionSpec]:
  """Returns layouts of a stack of matrices, from sharded to whole matrices.

  Each moves one axis of the mesh, by one exchange between devices.

  Args:
    spec: mesh axes along rows and columns.
    mesh: the mesh of the devices.
  """
  axes = lambda entry: (entry,) if isinstance(entry, str) else entry or ()
  rows, columns = (axes(x) for x in (*spec, None, None)[:2])
  idle = tuple(a for a in mesh.axis_names if a not in (*rows, *columns))
  return [
    PartitionSpec(None, rows, columns),
    PartitionSpec(idle, rows, columns),
    PartitionSpec((*idle, *rows), None, columns),
    PartitionSpec((*idle, *rows, *columns)),
  ]


def exchanged(matrices: Sequence[Any], static: Mapping[str, Any]) -> int:
  """Returns the bytes that a device exchanges to orthogonalize matrices.

  Counts operands and results of the exchanges of `_stages`, there and back;
  over mesh axes that split no matrix, only results are gathered.

  Args:
    matrices: shapes with shardings.
    static: hyperparameters; `newton_schulz` is the precision.
  """
  stacks: collections.Counter[Any] = collections.Counter()
  for x in matrices:
    before = len(x.shape) - 2
    spec = (*x.sharding.spec, None, None)[before : before + 2]
    stacks[x.shape[before:], spec, x.dtype] += math.prod(x.shape[:before])
  total = 0
  for (shape, spec, dtype), count in stacks.items():
    mesh = matrices[0].sharding.mesh
    item = 2 if static['newton_schulz'] == 'bfloat16' else dtype.itemsize
    own = -(-count // mesh.size) * math.prod(shape) * item
    axes = [(a,) if isinstance(a, str) else a or () for a in spec]
    split = [math.prod(mesh.shape[a] for a in group) for group in axes]
    idle = mesh.size // math.prod(split)
    total += 4 * own * sum(n > 1 for n in split)
    total += own * (idle + 1) * (idle > 1)
  return total


def nesterov(b1: Number, m: Any, grads: Any) -> tuple[Any, Any]:
  """Returns Nesterov's direction and the next average of gradients."""
  m = average(b1, m, grads)
  return average(b1, m, grads), m


def fan_ratio(shape: Sequence[int]) -> float:
  """Returns outputs / inputs of a kernel (…, in, out)."""
  return shape[-1] / shape[-2]


def newton_schulz_flops(shape: tuple[int, ...], iterations: int) -> float:
  """Returns the FLOPs of X·Xᵀ, its square and its product with X, repeated."""
  short, long = sorted(shape[-2:])
  products = 4.0 * short * short * long + 2.0 * short**3
  return iterations * products * math.prod(shape[:-2])


def scale_by_muon(
  b1: float,
  scale: str = 'rms',
  precision: str = 'momentum',
  layout: Layout = None,
) -> optax.GradientTransformation:
  r"""Orthogonalised Nesterov momentum of matrices, a list of leaves.

  .. math::
    u = 0.2 \sqrt{\max(n_{in}, n_{out})}\, U V^\top
    \quad\text{of}\quad U \Sigma V^\top = \text{Nesterov momentum}

  with singular values only near 1, by five Newton-Schulz iterations. The factor
  gives entries AdamW's size, so that both share learning rate and decay (arXiv
  2502.16982, equation 4); Jordan's is √max(1, n_out / n_in).

  Args:
    b1: decay of the momentum, a number or traced scalar.
    scale: 'rms', or 'shape' for Jordan's factor.
    precision: see orthogonalize.
    layout: see orthogonalize.
  """
  # Only momentum, divided by its norm; the iterations come below.
  muon = contrib.scale_by_muon(
    ns_steps=0,
    beta=b1,
    weight_dimension_numbers=lambda matrices: [_AXES] * len(matrices),
  )

  def factor(shape: Sequence[int]) -> float:
    if scale == 'rms':
      return RMS * max(shape[-2:]) ** 0.5
    return max(1.0, fan_ratio(shape)) ** 0.5

  def update(grads: Any, state: Any, params: Any = None):
    updates, state = muon.update(grads, state, params)
    updates = orthogonalize(updates, precision, eps=1e-8, layout=layout)
    return [u * factor(u.shape) for u in updates], state

  return optax.GradientTransformation(muon.init, update)


OPTIMIZER = Optimizer(
  name='muon',
  label='Muon',
  reference='Jordan et al. 2024; Liu et al., arXiv 2502.16982, equation 4',
  transform=lambda h: scale_by_muon(h.b1, h.scale, h.newton_schulz, h.layout),
  hyperparameters={
    'lr': lr(6e-4, range=(1e-3, 8e-3)),
    'b1': momentum(0.95, meaning='Decay rate of what is orthogonalised.'),
    'scale': Hyper(
      'rms',
      static=True,
      choices=('rms', 'shape'),
      meaning="Entries of AdamW's size, or Jordan's √max(1, out / in).",
    ),
    'newton_schulz': PRECISION,
  },
  # An orthogonalised update scales with width as a matrix, not per entry.
  lr_factors=lambda static: {
    **MUP,
    'hidden': 'spectral' if static['scale'] == 'rms' else 'norm',
  },
  moves=('hidden',),
  flops=lambda _, shape, static: newton_schulz_flops(shape, _ITERATIONS),
  exchanged=exchanged,
)
muon = alias(OPTIMIZER)
