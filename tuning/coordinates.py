"""Trains a few steps at each size and measures what should not vary with it.

B batch, L length, H heads, K key-value heads, h head dim, P visible pairs.
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import rich.console
from rich.progress import Progress

from steepest.data import corpus
from steepest.experiments import base, outside
from steepest.models import config as model_config
from steepest.optimizers import build
from steepest.optimizers.optimizer import find
from steepest.training import (
  environment,
  metrics,
  run,
  state as state_lib,
  step as step_lib,
)
from steepest.training.state import TrainState
from steepest.tuning import slopes

# Large, as the check requires, yet too small for narrow models, whose heads
# have 8 features, to saturate within the steps.
_LR = 2e-3
_LRS = {
  **dict.fromkeys(('cautious_lion', 'lion', 'signum', 'sophia'), 1e-3),
  # Angles, or steps whose spectral norm is about the learning rate.
  **dict.fromkeys(('adamh', 'dion', 'muonh', 'normuon'), 1e-2),
  # Multiplied by radii of 50 and 3000.
  'scion': 2e-4,
}
_HEADS = 4
_BATCH, _CONTEXT = 16, 64
# Leave 10 to 50 % of the matrices' coordinates unclipped at the base; _RHO is
# for GPT-2 and models given by path.
_RHO, _RHO_OF_LLAMA = 2.0, 0.1
# The second refresh is in use within 10 steps.
_HESSIAN_EVERY = 4
# Curvature estimates whose mean is measured.
DRAWS = 16

# Compilation dominates the time; less optimized code compiles faster.
_QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}

# The text: modules of the running Python's library, as bytes.
VOCAB_SIZE = 256
_BYTES = 4_000_000

Quantities = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What to check.

  Attributes:
    model: a file in models/, or the path of one.
    optimizer: a file in optimizers/, or the path of one.
    kind: 'mup' or 'sp'.
    depth_rule: for mup: 'none', 'completep' or 'depth_mup'.
    widths: ascending; the first is the base.
    depths: ascending; the first is the base.
    steps: optimizer steps.
    seeds: runs of each size.
  """

  model: str
  optimizer: str
  kind: str
  depth_rule: str
  widths: tuple[int, ...]
  depths: tuple[int, ...]
  steps: int
  seeds: int


def config(settings: Settings, width: int, depth: int) -> ConfigDict:
  """Returns the configuration of the runs of one size.

  Raises:
    ValueError: a name is unknown or the width does not divide.
  """
  c = base.get_config()
  base.set_model(c, settings.model)
  base.set_optimizer(c, settings.optimizer)
  base_width = settings.widths[0]
  if base_width % (2 * _HEADS) or width % base_width:
    raise ValueError(
      f'--widths: {width} must be a multiple of the first, and the first of '
      f'{2 * _HEADS}'
    )
  base_mlp_dim = model_config.find_model(settings.model).default_mlp_dim(
    base_width
  )
  ratio = width // base_width
  c.batch_size, c.steps = _BATCH, settings.steps
  c.model.update(
    num_layers=depth,
    width=width,
    # Heads grow with width, or a wrong attention scale would not show.
    num_heads=_HEADS,
    mlp_dim=base_mlp_dim * ratio,
    context=_CONTEXT,
    # As appendix D of arXiv 2203.03466 advises: random queries sharpen the
    # base's initial attention, which shows in LLaMA's curvatures (slope -2.7).
    zero_init_query=True,
  )
  c.parametrization.update(
    kind=settings.kind,
    depth_rule=settings.depth_rule,
    base_width=base_width,
    base_depth=settings.depths[0],
    base_mlp_dim=base_mlp_dim,
    base_num_heads=_HEADS,
    base_head_dim=base_width // _HEADS,
  )
  c.optimizer.update(
    lr=_lr(settings),
    rho=_RHO_OF_LLAMA if settings.model == 'llama' else _RHO,
    hessian_every=_HESSIAN_EVERY,
    # Without it, two estimates reach only 2 % of the curvature.
    hessian_bias_correction=True,
    weight_decay=0.0,
    clip_norm=0.0,
  )
  build.complete(c.optimizer)
  c.schedule.update(kind='constant', warmup_steps=0)
  c.dtype.compute = 'float32'
  return c


def _lr(settings: Settings) -> float:
  """Returns the learning rate; for an optimizer given by path, its default."""
  if outside.is_path(settings.optimizer):
    return find(settings.optimizer).hyperparameters['lr'].default
  return _LRS[settings.optimizer] if settings.optimizer in _LRS else _LR


def check(
  settings: Settings, console: rich.console.Console
) -> list[slopes.Row]:
  """Trains every size and judges the slopes.

  Args:
    settings: what to check.
    console: shows progress.

  Raises:
    ValueError: a name is unknown or a width does not divide.
  """
  text = read_text()
  base_width, base_depth = settings.widths[0], settings.depths[0]
  sizes = [(width, base_depth) for width in settings.widths]
  sizes += [(base_width, depth) for depth in settings.depths[1:]]
  for width, depth in sizes:
    config(settings, width, depth)  # Validate all before training any.
  measured: dict[tuple[int, int], list[Quantities]] = {}
  with Progress(console=console, disable=not console.is_terminal) as bar:
    total = len(sizes) * settings.seeds * settings.steps
    task = bar.add_task('compiling', total=total)
    for width, depth in sizes:
      bar.update(task, description=f'width {width}, {depth} layers')
      size = Size(settings, width, depth)
      measured[width, depth] = [
        size.measure(text, seed, lambda: bar.advance(task))
        for seed in range(settings.seeds)
      ]
  rows = slopes.judge(
    'width',
    settings.widths,
    [measured[width, base_depth] for width in settings.widths],
  )
  if len(settings.depths) > 1:
    rows += slopes.judge(
      'depth',
      settings.depths,
      [measured[base_width, depth] for depth in settings.depths],
    )
  return rows


def write(
  rows: list[slopes.Row], settings: Settings, out: pathlib.Path
) -> None:
  """Writes coordcheck.json into a directory."""
  out.mkdir(parents=True, exist_ok=True)
  content = {
    'passed': all(row.passed for row in rows),
    'settings': dataclasses.asdict(settings),
    'env': environment.describe(),
    'rows': [slopes.to_dict(row) for row in rows],
  }
  metrics.write_json(out / 'coordcheck.json', content)


def describe(settings: Settings) -> str:
  """Returns a short description of the check."""
  optimizer = find(settings.optimizer)
  text = (
    f'{settings.steps} steps of {_BATCH} × {_CONTEXT} bytes, '
    f'{settings.seeds} seeds, learning rate {_lr(settings):g}'
  )
  if optimizer.lr_factors is None:
    text += f'. No µP rule is known for {optimizer.label}.'
  return text


class Size:
  """The compiled functions of one width and depth."""

  def __init__(self, settings: Settings, width: int, depth: int):
    """Resolves the shapes; compiles nothing yet."""
    c = config(settings, width, depth)
    self.steps = settings.steps
    self._model = model_config.resolve(c.model, VOCAB_SIZE, c.dtype)
    self._file = model_config.find_model(c.model.name)
    self.setup = run.make_setup(c, self._model, (jax.devices()[0],))
    self._chain = self.setup.chain
    self._hypers = build.hyperparameters(c.optimizer, c.schedule, c.steps)
    jit = functools.partial(jax.jit, compiler_options=_QUICK)
    self._jit_step = jit(
      functools.partial(step_lib.train_step, self.setup), donate_argnums=0
    )
    self._jit_activations = jit(self.activations)
    self._jit_changes = jit(self._changes)
    self._jit_next_update = jit(self._next_update)

  def measure(
    self, text: np.ndarray, seed: int, on_step: Callable[[], None]
  ) -> Quantities:
    """Trains with one seed and returns means over entries.

    Args:
      text: token ids.
      seed: for initial weights and data.
      on_step: called after each step.

    Returns:
      `level/POINT` and `change/POINT`: mean |x_T| and mean |x_T - x_0| of an
      activation after training, on one batch; `update/ROLE`: mean |Δθ| of
      the next update; for optimizers with curvature, `curvature/ROLE`: its
      mean over coordinates and DRAWS estimates, and `unclipped/ROLE`: share
      of coordinates that are not clipped.
    """
    batch = lambda step: text_batch(text, _BATCH, _CONTEXT, seed, step)
    state = state_lib.init(self.setup, seed)
    last = batch(self.steps)
    start = self._jit_activations(state.params, last['inputs'])
    for step in range(self.steps):
      state, _ = self._jit_step(
        state, batch(step), self._hypers, np.uint32(seed)
      )
      on_step()
    found = self._jit_changes(state.params, last['inputs'], start)
    found |= self._jit_next_update(state, last, self._hypers, np.uint32(seed))
    return {name: float(value) for name, value in found.items()}

  def activations(
    self, params: Any, tokens_BxL: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns the outputs of the model's modules, by name.

    Blocks between the first and the last are left out, so that models of any
    depth have the same names. `attention_logits`, B×H×P, are those of unmasked
    pairs; `attention_limits`, of the same shape, are what they would be if each
    query had become a key: scale·|k|·|k'|.
    """
    found: dict[str, jax.Array] = {}

    def record(call, args, kwargs, context):
      y = call(*args, **kwargs)
      path = '/'.join(context.module.path)
      if context.method_name == '__call__':
        if path == 'block_0':
          found['embedding'] = args[0]
        found[path or 'logits'] = y
      return y

    with nn.intercept_methods(record):
      self.setup.module.apply({'params': params}, tokens_BxL)
    named = {k: v for k, v in found.items() if not k.startswith('block_')}
    for name, i in (('first', 0), ('last', self._model.num_layers - 1)):
      block = f'block_{i}'
      logits_BxHxP, limits_BxHxP = self._attention(
        found[f'{block}/query'], found[f'{block}/key']
      )
      named[f'{name}_block/attention_logits'] = logits_BxHxP
      named[f'{name}_block/attention_limits'] = limits_BxHxP
      for k, v in found.items():
        if k == block or k.startswith(f'{block}/'):
          named[k.replace(block, f'{name}_block', 1)] = v
    return named

  def _attention(
    self, query: jax.Array, key: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    m = self._model
    B, L, _ = query.shape
    q_BxLxHxh = query.reshape(B, L, m.num_heads, m.head_dim)
    k_BxLxKxh = key.reshape(B, L, m.num_kv_heads, m.head_dim)
    if hasattr(self._file, 'rotate'):
      q_BxLxHxh = self._file.rotate(q_BxLxHxh, m.rope_base)
      k_BxLxKxh = self._file.rotate(k_BxLxKxh, m.rope_base)
    k_BxLxHxh = jnp.repeat(k_BxLxKxh, m.num_heads // m.num_kv_heads, 2)
    scale = self.setup.module.rules.attention_scale
    logits_BxHxLxL = jnp.einsum('BqHh,BkHh->BHqk', q_BxLxHxh, k_BxLxHxh)
    # Queries start at zero and are still growing; keys have their final size.
    k_BxLxH = jnp.linalg.norm(k_BxLxHxh, axis=-1)
    limits_BxHxLxL = jnp.einsum('BqH,BkH->BHqk', k_BxLxH, k_BxLxH)
    rows_P, columns_P = np.tril_indices(L)
    return (
      scale * logits_BxHxLxL[:, :, rows_P, columns_P],
      scale * limits_BxHxLxL[:, :, rows_P, columns_P],
    )

  def _changes(
    self, params: Any, tokens_BxL: jax.Array, start: dict[str, jax.Array]
  ) -> dict[str, jax.Array]:
    now = self.activations(params, tokens_BxL)
    level = {f'level/{k}': jnp.abs(x).mean() for k, x in now.items()}
    change = {
      f'change/{k}': jnp.abs(x - start[k]).mean() for k, x in now.items()
    }
    return level | change

  def _next_update(
    self,
    state: TrainState,
    batch: dict[str, jax.Array],
    hypers: dict[str, jax.Array],
    seed: jax.Array,
  ) -> dict[str, jax.Array]:
    """Measures the next update, with well-estimated curvature."""
    found: dict[str, jax.Array] = {}
    params, opt_state = state.params, state.opt_state
    if self._chain.wants_curvature:
      # Discard the run's own few estimates.
      opt_state = self._chain.init(params)._replace(m=opt_state.m)

      def fold(i: jax.Array, opt_state: Any) -> Any:
        h = step_lib.curvature(self.setup, params, batch, seed, state.step + i)
        return self._chain.update_curvature(opt_state, h, hypers, state.step)

      opt_state = jax.lax.fori_loop(0, DRAWS, fold, opt_state)
      weight = 1 - hypers['b2'] ** DRAWS
      means = self._role_means(opt_state.h)
      found |= {f'curvature/{k}': h / weight for k, h in means.items()}
    _, grads = step_lib.gradient(self.setup, params, batch)
    after, _, stats = self._chain.update(
      grads, opt_state, params, state.step, hypers
    )
    found |= {
      k.replace('_fraction', ''): v
      for k, v in self._chain.named(stats).items()
      if k.startswith('unclipped_fraction/') and '/layer/' not in k
    }
    size = jax.tree.map(lambda a, b: jnp.abs(a - b), after, params)
    columns = self._chain.lr_factors or {}
    for k, v in self._role_means(size).items():
      column = columns[k] if k in columns else ''
      spectral = k == 'hidden' and column in ('spectral', 'norm')
      found[f'update/{k}/spectral' if spectral else f'update/{k}'] = v
    return found

  def _role_means(self, tree: Any) -> dict[str, jax.Array]:
    """Returns the mean over the parameters of each role."""
    leaves: dict[str, list[jax.Array]] = {}
    for x, f in zip(
      jax.tree.leaves(tree), jax.tree.leaves(self._chain.factors)
    ):
      leaves.setdefault(f.kind, []).append(x)
    mean = lambda xs: sum(x.sum() for x in xs) / sum(x.size for x in xs)
    return {kind: mean(xs) for kind, xs in leaves.items()}


def read_text() -> np.ndarray:
  """Returns the first 4 MB of the library's modules as uint8 token ids.

  Modules are sorted by path, so that the same Python gives the same text on
  every machine.

  Raises:
    FileNotFoundError: the library's source is missing.
  """
  paths = corpus.library()
  text = bytearray()
  for name in sorted(paths):
    text += paths[name].read_bytes()
    if len(text) >= _BYTES:
      break
  if len(text) < _BYTES:
    raise FileNotFoundError(
      f'{len(text)} bytes of *.py are in the library of this Python, {_BYTES} '
      'are needed: use a Python that has the source of its library'
    )
  return np.frombuffer(bytes(text[:_BYTES]), np.uint8)


def text_batch(
  text: np.ndarray, batch_size: int, context: int, seed: int, step: int
) -> dict[str, np.ndarray]:
  """Returns random windows, a function of the seed and the step.

  Args:
    text: token ids.
    batch_size: windows.
    context: tokens per window.
    seed: of the run.
    step: of the run.

  Returns:
    `inputs` and `targets`, batch_size × context token ids.
  """
  generator = np.random.default_rng((seed, step))
  starts = generator.integers(0, len(text) - context, batch_size)
  windows = text[starts[:, None] + np.arange(context + 1)].astype(np.int32)
  return {'inputs': windows[:, :-1], 'targets': windows[:, 1:]}
