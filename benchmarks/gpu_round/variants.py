"""Variants of the training step that may be faster on a GPU.

Each patches one function or sets XLA options. It states the milliseconds that
it was expected to save on one H200 before it was timed, by row of
benchmarks/shapes.py; rows not named have nothing to gain. None is a default: a
variant that no measured time confirms stays here.

B batch, L length, D width, F MLP features, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
from types import ModuleType
from typing import Any
from unittest import mock

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np

from benchmarks.gpu_round import cross_entropy, norms
from steepest.models import config as model_config, gpt2, layers, llama, remat
from steepest.training import loss, mesh as mesh_lib, step as step_lib
from steepest.training.state import Setup, TrainState

# √(2/π) and the cubic term of GELU's tanh form.
_SLOPE, _CUBIC = (2 / np.pi) ** 0.5, 0.044715


@dataclasses.dataclass(frozen=True)
class Variant:
  """What is changed, and what it should gain.

  Attributes:
    gains: milliseconds a step, expected, by row.
    patches: (module or class, name, what takes its place).
    options: of XLA.
    carries_copy: whether the update writes the rounded weights too.
    kernel: whether it is one of our own.
    apart: whether it stays out of what is done together.
  """

  gains: Mapping[str, str] = dataclasses.field(default_factory=dict)
  patches: tuple[tuple[ModuleType | type, str, Any], ...] = ()
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  carries_copy: bool = False
  kernel: bool = False
  apart: bool = False

  def state(self, setup: Setup, state: TrainState) -> Any:
    """Returns what this form carries from step to step."""
    if not self.carries_copy:
      return state
    return state, _compiled_copies(setup)(state.params)

  def plain(self, held: Any) -> TrainState:
    """Returns the training state of what `state` returned."""
    return held[0] if self.carries_copy else held

  def lower(self, setup: Setup, hypers: Mapping[str, Any]) -> Any:
    """Traces the step of one device: `.compile(self.options)` does the rest.

    Not in two threads at once, since functions are patched meanwhile.
    """
    whole = mesh_lib.replicated(setup.mesh)
    scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype, sharding=whole)
    state = setup.shapes
    if self.carries_copy:
      copies = jax.eval_shape(functools.partial(_copies, setup), state.params)
      state = state, _placed(copies, whole)
    fn = _step_with_copy if self.carries_copy else step_lib.train_step
    with self._patched(), jax.set_mesh(setup.mesh):
      return jax.jit(functools.partial(fn, setup), donate_argnums=0).lower(
        state,
        mesh_lib.batch_shapes(
          setup.mesh, setup.batch_size, setup.model.context, packed=False
        ),
        {name: scalar(np.float32) for name in hypers},
        scalar(np.uint32),
        scalar(np.bool_),
      )

  @contextlib.contextmanager
  def _patched(self) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
      for where, name, value in self.patches:
        stack.enter_context(mock.patch.object(where, name, value))
      yield


def together(variants: Sequence[Variant]) -> Variant:
  """Returns one that does what all of these do."""
  return Variant(
    patches=tuple(patch for v in variants for patch in v.patches),
    options={k: x for v in variants for k, x in v.options.items()},
    carries_copy=any(v.carries_copy for v in variants),
  )


def _placed(tree: Any, sharding: Any) -> Any:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )


def _is_product(setup: Setup) -> Any:
  """Returns, like the parameters, which of them `rounded` rounds."""
  params = setup.shapes.params
  used = jax.eval_shape(functools.partial(step_lib.rounded, setup), params)
  return jax.tree.map(lambda p, u: p.dtype != u.dtype, params, used)


def _copies(setup: Setup, params: Any) -> list[jax.Array]:
  """Returns the weights that matrix products take, rounded."""
  chosen = jax.tree.leaves(_is_product(setup))
  used = jax.tree.leaves(step_lib.rounded(setup, params))
  return [u for u, is_chosen in zip(used, chosen, strict=True) if is_chosen]


@functools.lru_cache(maxsize=1)
def _compiled_copies(setup: Setup) -> Any:
  return jax.jit(functools.partial(_copies, setup))


def _step_with_copy(
  setup: Setup, held: tuple[TrainState, list[jax.Array]], *arguments: Any
) -> Any:
  """A training step that finds its rounded weights beside the state.

  For optimizers without an estimate of curvature, which would need those of
  the new parameters.
  """
  state, copies = held
  chosen = _is_product(setup)

  def rounded(setup: Setup, params: Any) -> Any:
    left = iter(copies)
    return jax.tree.map(lambda p, c: next(left) if c else p, params, chosen)

  with mock.patch.object(step_lib, 'rounded', rounded):
    state, stats = step_lib.train_step(setup, state, *arguments)
  return (state, _copies(setup, state.params)), stats


def _value_in_one_reduction(
  logits_BxLxV: jax.Array, labels_BxL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Takes maximum and Σ exp of the logits in one pass (loss._value)."""
  logits = logits_BxLxV.astype(jnp.float32)

  def add(a: Any, b: Any) -> Any:
    most = jnp.maximum(a[0], b[0])
    return most, sum(total * jnp.exp(m - most) for m, total in (a, b))

  least = jnp.float32(jnp.finfo(jnp.float32).min), jnp.float32(0)
  most_BxL, total_BxL = jax.lax.reduce(
    (logits, jnp.ones_like(logits)), least, add, (2,)
  )
  normalizer_BxL = most_BxL + jnp.log(total_BxL)
  picked_BxL = jnp.take_along_axis(logits, labels_BxL[..., None], -1)[..., 0]
  return normalizer_BxL - picked_BxL, normalizer_BxL


@jax.custom_vjp
def _gelu(x: jax.Array) -> jax.Array:
  """GELU's tanh form as x·σ(2√(2/π)·(x + 0.044715·x³)), and its derivative."""
  wide = x.astype(jnp.float32)
  return (wide * _gate(wide)).astype(x.dtype)


def _gate(x: jax.Array) -> jax.Array:
  return jax.nn.sigmoid(2 * _SLOPE * x * (1 + _CUBIC * x * x))


def _gelu_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
  wide = x.astype(jnp.float32)
  gate = _gate(wide)
  inner = 2 * _SLOPE * wide * (1 + 3 * _CUBIC * wide * wide)
  slope = gate * (1 + inner * (1 - gate))
  return ((g.astype(jnp.float32) * slope).astype(x.dtype),)


_gelu.defvjp(lambda x: (_gelu(x), x), _gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _standardized(x_BxLxD: jax.Array, eps: float) -> jax.Array:
  """gpt2.standardized, whose backward pass takes its means apart."""
  return gpt2._forward(x_BxLxD, eps)[0]


def _standardized_backward(
  eps: float, residuals: Any, g_BxLxD: jax.Array
) -> tuple[jax.Array]:
  del eps
  x_BxLxD, mean_BxLx1, scale_BxLx1 = residuals
  x_hat_BxLxD = (x_BxLxD.astype(jnp.float32) - mean_BxLx1) * scale_BxLx1
  mean = lambda x: x.mean(-1, keepdims=True)
  # XLA would take both means in one kernel with the sums over tokens.
  of_g_BxLx1, along_BxLx1 = jax.lax.optimization_barrier(
    (mean(g_BxLxD), mean(g_BxLxD * x_hat_BxLxD))
  )
  gradient = scale_BxLx1 * (g_BxLxD - of_g_BxLx1 - x_hat_BxLxD * along_BxLx1)
  return (gradient.astype(x_BxLxD.dtype),)


_standardized.defvjp(gpt2._forward, _standardized_backward)


def _gated_as_one(self: llama.Block, x_BxLxD: jax.Array) -> jax.Array:
  """SwiGLU whose gate and up are one matrix product (llama.Block.mlp)."""
  c, rules = self.config, self.rules
  into = rules.hidden('width', fan_out='mlp')
  out = rules.hidden('mlp', writes_residual=True)
  activation = model_config.ACTIVATIONS[c.activation]

  class Kernel(nn.Module):
    """Holds one of the two, where Linear would."""

    @nn.compact
    def __call__(self) -> jax.Array:
      shape, axes = (x_BxLxD.shape[-1], c.mlp_dim), ('width', 'mlp')
      kernel_DxF = layers.declare(self, 'kernel', into, axes, shape)
      return kernel_DxF.astype(c.compute_dtype)

  both_Dx2F = jnp.concatenate(
    [Kernel(name='mlp_gate')(), Kernel(name='mlp_up')()], axis=1
  )
  both_BxLx2F = layers.matmul(x_BxLxD, both_Dx2F)

  def gated(both_BxLx2F: jax.Array) -> jax.Array:
    gate_BxLxF, up_BxLxF = jnp.split(both_BxLx2F, 2, axis=-1)
    return activation(gate_BxLxF) * up_BxLxF

  down = self.linear('mlp_down', c.width, out, ('mlp', 'width'))
  return down(remat.entrywise(gated)(both_BxLx2F))


# The form that the project has.
PLAIN = 'as it is'
_OF_OPTIONS = {'124m': '-1 to -3.5', '2.65b': '-1 to -3', 'llama': '-1 to -3.5'}
ALONE = {
  PLAIN: Variant(dict.fromkeys(('124m', '2.65b', 'llama'), '0')),
  # GELU and the residual in cuBLAS's epilogues.
  'no triton products': Variant(
    _OF_OPTIONS, options={'xla_gpu_enable_triton_gemm': False}
  ),
  # No slices and concatenations of merged products.
  'no merged products': Variant(
    {'2.65b': '-1 to -3'}, options={'xla_gpu_dot_merger_threshold_mb': 0}
  ),
  'tuned unrolling': Variant(
    {'124m': 'unknown'},
    options={'xla_gpu_native_emitter_tune_unroll_factor_for_loops': True},
  ),
  'normalizer in one reduction': Variant(
    {'124m': '-1', 'llama': '-0.6'},
    ((loss, '_value', _value_in_one_reduction),),
  ),
  'derivative of GELU': Variant(
    {'124m': '-0.8', '2.65b': '-1'},
    (
      (
        gpt2,
        'ACTIVATIONS',
        {**model_config.ACTIVATIONS, 'gelu_tanh': _gelu},
      ),
    ),
  ),
  "LayerNorm's means apart": Variant(
    {'124m': '-1.3', '2.65b': '-1.4'},
    ((gpt2, 'standardized', _standardized),),
  ),
  # As compiled it moves more bytes, since the gradients are put together.
  'gate and up as one': Variant(
    {'llama': '-0.7'}, ((llama.Block, 'mlp', _gated_as_one),), apart=True
  ),
  'rounded weights from the update': Variant(
    {'124m': '-0.2', '2.65b': '-2.9'}, carries_copy=True
  ),
  'cross-entropy kernel': Variant(
    {'124m': '-3.5 to -4.5', '2.65b': '-0.6', 'llama': '-2.2 to -2.9'},
    ((step_lib, 'training_loss', cross_entropy.training_loss),),
    kernel=True,
  ),
  # By its bytes, and the sums of the gradients of three products that it reads.
  'kernel behind norms': Variant(
    {'124m': '-3.4', '2.65b': '-3.7', 'llama': 'unknown'},
    ((gpt2, 'Block', norms.GPT2), (llama, 'Block', norms.LLAMA)),
    kernel=True,
  ),
}


def of_row(row: str) -> dict[str, Variant]:
  """Returns a row's variants by name, the most telling first."""
  alone = {name: v for name, v in ALONE.items() if row in v.gains}
  plain = alone.pop(PLAIN)
  options = [v for v in alone.values() if v.options]
  kernels = {name: v for name, v in alone.items() if v.kernel}
  rewrites = [
    v for v in alone.values() if not (v.options or v.kernel or v.apart)
  ]
  return {
    PLAIN: plain,
    'all': together([*options, *rewrites, *kernels.values()]),
    'all rewrites': together(rewrites),
    **kernels,
    **alone,
    'all options': together(options),
    'all but kernels': together([*options, *rewrites]),
  }
