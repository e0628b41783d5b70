"""Muon (Jordan et al. 2024; Liu et al., arXiv 2502.16982), from Optax.

What orthogonalises momentum elsewhere in this folder takes its Newton-Schulz
iterations from here.
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax import numpy as jnp
import optax
from optax import contrib

from steepest.optimizers.alias import alias
from steepest.optimizers.optimizer import MUP, Hyper, Optimizer, lr, momentum
from steepest.optimizers.trees import Number, average

# Root mean square of an update's entries: that of AdamW's (arXiv 2502.16982).
RMS = 0.2
# Jordan's coefficients; singular values end between 0.68 and 1.13.
JORDAN = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
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
) -> list[jax.Array]:
  """Returns U·Vᵀ of each U·Σ·Vᵀ, up to singular values near 1.

  X = G / (|G| + ε), then X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ again and
  again. Axes before the last two are layers, each with its own matrix.

  Args:
    matrices: of any shapes.
    precision: 'momentum', that of the matrices, or 'bfloat16'.
    coefficients: a, b and c.
    iterations: how often.
    eps: added to the norm.
  """
  newton_schulz = contrib.scale_by_muon(
    coefficients,
    iterations,
    # Without momentum: the matrices as they are.
    beta=0.0,
    eps=eps,
    nesterov=False,
    weight_dimension_numbers=lambda found: [_AXES] * len(found),
  )
  wide = list(matrices)
  if precision == 'bfloat16':
    matrices = [x.astype(jnp.bfloat16) for x in wide]
  found, _ = newton_schulz.update(list(matrices), newton_schulz.init(wide))
  return [x.astype(w.dtype) for x, w in zip(found, wide)]


def nesterov(b1: Number, m: Any, grads: Any) -> tuple[Any, Any]:
  """Returns Nesterov's direction and the next average of the gradients."""
  m = average(b1, m, grads)
  return average(b1, m, grads), m


def fan_ratio(shape: Sequence[int]) -> float:
  """Returns the outputs of a kernel (…, in, out) over its inputs."""
  return shape[-1] / shape[-2]


def newton_schulz_flops(shape: tuple[int, ...], iterations: int) -> float:
  """Returns the FLOPs of X·Xᵀ, its square and its product with X, each time."""
  short, long = sorted(shape[-2:])
  products = 4.0 * short * short * long + 2.0 * short**3
  return iterations * products * math.prod(shape[:-2])


def scale_by_muon(
  b1: float, scale: str = 'rms', precision: str = 'momentum'
) -> optax.GradientTransformation:
  r"""Orthogonalised Nesterov momentum of matrices, a list of leaves.

  .. math::
    u = 0.2 \sqrt{\max(n_{in}, n_{out})}\, U V^\top
    \quad\text{of}\quad U \Sigma V^\top = \text{Nesterov momentum}

  up to singular values near 1: five Newton-Schulz iterations. The factor gives
  entries the size that AdamW's have, so both share learning rate and decay
  (arXiv 2502.16982, equation 4); Jordan's is √max(1, n_out / n_in).

  Args:
    b1: decay of the momentum, a number or traced scalar.
    scale: 'rms', or 'shape' for Jordan's factor.
    precision: see orthogonalize.
  """
  # Its momentum, divided by its norm: no iteration yet.
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
    updates = orthogonalize(updates, precision, eps=1e-8)
    return [u * factor(u.shape) for u in updates], state

  return optax.GradientTransformation(muon.init, update)


OPTIMIZER = Optimizer(
  name='muon',
  label='Muon',
  reference='Jordan et al. 2024; Liu et al., arXiv 2502.16982, equation 4',
  transform=lambda h: scale_by_muon(h.b1, h.scale, h.newton_schulz),
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
  # What is orthogonalised grows with the width as a matrix, not entry by entry.
  lr_factors=lambda static: {
    **MUP,
    'hidden': 'spectral' if static['scale'] == 'rms' else 'norm',
  },
  moves=('hidden',),
  flops=lambda _, shape, static: newton_schulz_flops(shape, _ITERATIONS),
)
muon = alias(OPTIMIZER)
