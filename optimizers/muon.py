"""Muon (Jordan et al. 2024; Liu et al., arXiv 2502.16982), from Optax.

Other optimizers here that orthogonalise take their Newton-Schulz iterations
from this file.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec
import optax
from optax import contrib

from steepest.optimizers import spread
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

  def iterate(x: jax.Array) -> jax.Array:
    return newton_schulz.update([x], newton_schulz.init([x]))[0][0]

  found = spread.each(iterate, matrices, layout)
  return [x.astype(w.dtype) for x, w in zip(found, wide)]


def exchanged(
  matrices: Sequence[Any], state: Any, static: Mapping[str, Any]
) -> int:
  """Returns the bytes that a device exchanges to orthogonalize matrices.

  Args:
    matrices: shapes with shardings.
    state: the optimizer's, likewise; not used.
    static: hyperparameters; `newton_schulz` is the precision.
  """
  del state
  if static['newton_schulz'] == 'bfloat16':
    matrices = [x.update(dtype=jnp.dtype('bfloat16')) for x in matrices]
  return spread.exchanged(matrices)


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
