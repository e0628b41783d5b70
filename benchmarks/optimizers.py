"""What an optimizer's update costs.

    python benchmarks/optimizers.py [NAME ...]

Times the chain's update (clip, direction, role factors, decay, schedule) of a
GPT-2's parameters on zeros and ones of memory that is donated, as a training
step does, and prints for each optimizer, or those named: milliseconds, the
time that its bytes take at the bandwidth of a copy measured here, their ratio,
bytes a parameter that it moves, bytes a parameter of state, and the FLOPs a
parameter of matrix products.
"""

import sys
import time
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from steepest.experiments import base
from steepest.models import config as model_config
from steepest.optimizers import build, costs, optimizer
from steepest.training import run
from steepest.training.state import Setup

_CPU = jax.default_backend() == 'cpu'
# Layers and width of the model whose parameters are updated.
_LAYERS, _WIDTH, _VOCAB = (12, 768, 4096) if _CPU else (12, 768, 50_304)
_ROUNDS = 7


def main() -> None:
  """Prints the table."""
  names = sys.argv[1:] or optimizer.names()
  for name in names:
    optimizer.find(name)
  console = Console(width=100)
  bandwidth = _copy_bandwidth()
  console.print(
    f'{jax.devices()[0].device_kind}, copy at {bandwidth / 1e9:.1f} GB/s'
  )
  console.print(_costs(names, bandwidth))


def _copy_bandwidth() -> float:
  """Returns bytes read and written a second by x + 1 of much memory."""
  x = jnp.zeros(2**27 if _CPU else 2**28, jnp.float32)
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = jax.block_until_ready(add(x))
  seconds = []
  for _ in range(_ROUNDS):
    start = time.perf_counter()
    x = jax.block_until_ready(add(x))
    seconds.append(time.perf_counter() - start)
  return 2 * x.nbytes / min(seconds)


def _setup(name: str) -> tuple[Setup, Any]:
  """Returns the optimizer's setup on one device, and its hyperparameters."""
  config, _ = base.with_variant(f'gpt2,{name}')
  config.model.update(
    num_layers=_LAYERS, width=_WIDTH, num_heads=_WIDTH // 64, vocab_size=_VOCAB
  )
  config.mesh.data = 1
  model = model_config.resolve(config.model, _VOCAB, config.dtype)
  hypers = build.hyperparameters(
    config.optimizer, config.schedule, config.steps
  )
  return run.make_setup(config, model), hypers


def _costs(names: list[str], bandwidth: float) -> Table:
  table = Table('optimizer', box=None, pad_edge=False)
  for column in (
    'update ms',
    'its bytes ms',
    'ratio',
    'bytes moved',
    'state bytes',
    'FLOPs',
  ):
    table.add_column(column, justify='right')
  for name in names:
    setup, hypers = _setup(name)
    chain, shapes = setup.chain, setup.shapes.params
    size = sum(x.size for x in jax.tree.leaves(shapes))
    moved = costs.update_bytes(chain, shapes)
    seconds = _seconds(chain, shapes, hypers)
    table.add_row(
      name,
      f'{1e3 * seconds:.2f}',
      f'{1e3 * moved / bandwidth:.2f}',
      f'{seconds * bandwidth / moved:.2f}',
      f'{moved / size:.1f}',
      f'{costs.state_bytes(chain, shapes) / size:.1f}',
      f'{costs.update_flops(chain, shapes) / size:.0f}',
    )
  return table


def _seconds(chain: build.Chain, shapes: Any, hypers: Any) -> float:
  """Returns an update's time, the least as of the copy."""
  rng = np.random.default_rng(0)
  make = lambda: jax.tree.map(
    lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype) / 100, shapes
  )
  params, grads = make(), make()
  state = jax.jit(chain.init)(params)
  update = jax.jit(
    lambda params, state, grads, step, measure: chain.update(
      grads, state, params, step, hypers, measure
    )[:2],
    donate_argnums=(0, 1),
  )
  found = []
  # The first two compile, and give SOAP its bases.
  for step in range(_ROUNDS + 2):
    start = time.perf_counter()
    # Without what is measured where a row is written.
    params, state = update(
      params, state, grads, jnp.int32(step + 1), np.bool_(False)
    )
    jax.block_until_ready((params, state))
    found.append(time.perf_counter() - start)
  return min(found[2:])


if __name__ == '__main__':
  main()
