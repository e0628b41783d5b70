"""Normalization whose backward pass is one Pallas kernel for GPUs.

It reads the residual stream and the gradients of the normalized stream and of
the stream itself, and writes the stream's gradient with parts of the gain's,
for which XLA would read everything again. For models with gains and no biases.

B batch, L length, D width, T tokens B·L, R tokens at once, P the power of two
from D on, S parts of the gain's gradient.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from steepest.models import gpt2, layers, llama, remat
from steepest.models.config import ModelConfig
from steepest.models.parametrization import Parametrization

# Programs, several for each of 132 multiprocessors; numbers of one at a time.
_PARTS = 1024
_NUMBERS = 4096
_WARPS = 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def normalized(
  x_BxLxD: jax.Array, gain_D: jax.Array, eps: float, centred: bool
) -> tuple[jax.Array, jax.Array]:
  """Returns the stream as it is, and what is normalised, in its dtype.

  Both, so that the backward pass gets the gradients of both.

  Args:
    x_BxLxD: the residual stream.
    gain_D: multiplies.
    eps: added to the variance or mean square.
    centred: LayerNorm; else RMSNorm.
  """
  return _forward(x_BxLxD, gain_D, eps, centred)[0]


def _forward(
  x_BxLxD: jax.Array, gain_D: jax.Array, eps: float, centred: bool
) -> tuple[tuple[jax.Array, jax.Array], Any]:
  if centred:
    y_BxLxD, (_, mean_BxLx1, scale_BxLx1) = gpt2._forward(x_BxLxD, eps)
  else:
    x = x_BxLxD.astype(jnp.float32)
    scale_BxLx1 = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)
    y_BxLxD, mean_BxLx1 = x * scale_BxLx1, jnp.zeros_like(scale_BxLx1)
  y_BxLxD = (y_BxLxD * gain_D[None, None]).astype(x_BxLxD.dtype)
  return (x_BxLxD, y_BxLxD), (x_BxLxD, mean_BxLx1, scale_BxLx1, gain_D)


def _backward(
  eps: float, centred: bool, kept: Any, gradients: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  del eps
  x_BxLxD, mean_BxLx1, scale_BxLx1, gain_D = kept
  of_x_BxLxD, of_y_BxLxD = gradients
  D = gain_D.size
  rows = lambda a: a.reshape(-1, D)
  T = x_BxLxD.size // D
  parts = min(_PARTS, T)
  # Tokens at once: a power of two that divides those of a program.
  each = T // parts
  R = min(each & -each, max(1, _NUMBERS // pl.next_power_of_2(D)))
  if parts * each != T:
    raise ValueError(f'{T} tokens are not a multiple of {parts}')
  of_x_TxD, of_gain_SxD = pl.pallas_call(
    functools.partial(_program, each, R, D, centred),
    (
      jax.ShapeDtypeStruct((T, D), x_BxLxD.dtype),
      jax.ShapeDtypeStruct((parts, D), jnp.float32),
    ),
    grid=(parts,),
    # The stream's gradient is added in place.
    input_output_aliases={0: 0},
    compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=2),
    # On a CPU, for tests and dry runs.
    interpret=remat.platform() == 'cpu',
    name='norm_backward',
  )(
    rows(of_x_BxLxD),
    rows(of_y_BxLxD),
    rows(x_BxLxD),
    mean_BxLx1.reshape(T),
    scale_BxLx1.reshape(T),
    gain_D,
  )
  return of_x_TxD.reshape(x_BxLxD.shape), of_gain_SxD.sum(0)


normalized.defvjp(_forward, _backward)


def _program(
  each: int,
  R: int,
  D: int,
  centred: bool,
  of_stream: Any,
  of_y: Any,
  stream: Any,
  means: Any,
  scales: Any,
  gains: Any,
  of_x: Any,
  of_gains: Any,
) -> None:
  P = pl.next_power_of_2(D)
  part, columns = pl.program_id(0), pl.ds(0, P)
  inside_P = jnp.arange(P) < D
  inside_RxP = jnp.broadcast_to(inside_P[None], (R, P))
  gain_P = plgpu.load(gains.at[columns], mask=inside_P, other=0)

  def tokens(i: Any, of_gain_P: jax.Array) -> jax.Array:
    at = pl.ds(part * each + i * R, R)
    read = lambda ref: plgpu.load(
      ref.at[at, columns], mask=inside_RxP, other=0
    ).astype(jnp.float32)
    mean = lambda x_RxP: x_RxP.sum(1, keepdims=True) / D
    mean_R, scale_R = plgpu.load(means.at[at]), plgpu.load(scales.at[at])
    x_RxP = (read(stream) - mean_R[:, None]) * scale_R[:, None]
    x_RxP = jnp.where(inside_RxP, x_RxP, 0)
    of_y_RxP = read(of_y)
    g_RxP = of_y_RxP * gain_P[None]
    change_RxP = g_RxP - x_RxP * mean(g_RxP * x_RxP)
    if centred:
      change_RxP -= mean(g_RxP)
    sum_RxP = read(of_stream) + scale_R[:, None] * change_RxP
    out = sum_RxP.astype(of_x.dtype)
    plgpu.store(of_x.at[at, columns], out, mask=inside_RxP)
    return of_gain_P + (of_y_RxP * x_RxP).sum(0)

  start_P = jnp.zeros(P, jnp.float32)
  total_P = jax.lax.fori_loop(0, each // R, tokens, start_P)
  plgpu.store(of_gains.at[part, columns], total_P, mask=inside_P)


class _Norm(nn.Module):
  """In the place of a block's normalisation; declares the same gain."""

  config: ModelConfig
  rules: Parametrization
  centred: bool

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    role = self.rules.gain(True)
    gain_D = layers.declare(self, 'gain', role, ('norm',), x_BxLxD.shape[-1:])
    return normalized(x_BxLxD, gain_D, self.config.norm_eps, self.centred)


def _block(kind: type[layers.Block], centred: bool) -> type[layers.Block]:
  """Returns a model's block with these normalisations (layers.Block)."""

  class Block(kind):
    """Attention and MLP, each added to the stream that a norm hands on."""

    @nn.compact
    def __call__(
      self, x_BxLxD: jax.Array, segment_ids_BxL: Any, positions_BxL: Any
    ) -> jax.Array:
      norm = lambda name: _Norm(self.config, self.rules, centred, name=name)
      scale = self.rules.residual_multiplier
      x_BxLxD, y_BxLxD = norm('attention_norm')(x_BxLxD)
      x_BxLxD += scale * self.attention(y_BxLxD, segment_ids_BxL, positions_BxL)
      x_BxLxD = remat.named(x_BxLxD, 'residual')
      x_BxLxD, y_BxLxD = norm('mlp_norm')(x_BxLxD)
      return layers.stream(x_BxLxD + scale * self.mlp(y_BxLxD))

  return Block


GPT2 = _block(gpt2.Block, centred=True)
LLAMA = _block(llama.Block, centred=False)
