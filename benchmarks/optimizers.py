"""Measures the cost of optimizers' updates.

    python -m benchmarks.optimizers [NAME ...]

Times the chain's update (clip, direction, role factors, decay, schedule) of a
GPT-2's random parameters with donated buffers, as in a training step, for all
optimizers or those named. Prints milliseconds, the time that the bytes moved
would take at the measured bandwidth of a copy, the ratio of the two, and per
parameter the bytes moved, the bytes of state and the FLOPs of matrix products.
"""

import dataclasses
import functools
import sys
import time
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import jax_step, shapes
from steepest.optimizers import build, costs, optimizer
from steepest.training import run
from steepest.training.state import Setup

# Number of timed updates.
_ROUNDS = 7


def main() -> None:
  """Prints the table."""
  names = sys.argv[1:] or optimizer.names()
  for name in names:
    optimizer.find(name)
  console = Console(width=100)
  row, numbers = shapes.GPU['124m'], 2**28
  if jax.default_backend() == 'cpu':
    row, numbers = dataclasses.replace(row, vocab=4096), 2**27
  bandwidth = copy_bandwidth(numbers)
  console.print(
    f'{jax.devices()[0].device_kind}, copy at {bandwidth / 1e9:.1f} GB/s'
  )
  console.print(_costs(row, names, bandwidth))


def copy_bandwidth(size: int) -> float:
  """Returns bytes read and written per second by x + 1 of `size` numbers."""
  x = jnp.zeros(size, jnp.float32)
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = jax.block_until_ready(add(x))
  seconds = []
  for _ in range(_ROUNDS):
    start = time.perf_counter()
    x = jax.block_until_ready(add(x))
    seconds.append(time.perf_counter() - start)
  return 2 * x.nbytes / min(seconds)


def setup_of(row: shapes.Row, name: str) -> tuple[Setup, Any]:
  """Returns the optimizer's setup on one device, and its hyperparameters."""
  config, model = jax_step.configure(row.shape(optimizer=name))
  hypers = build.hyperparameters(
    config.optimizer, config.schedule, config.steps
  )
  return run.make_setup(config, model), hypers


def _costs(row: shapes.Row, names: list[str], bandwidth: float) -> Table:
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
    setup, hypers = setup_of(row, name)
    chain, params = setup.chain, setup.shapes.params
    size = sum(x.size for x in jax.tree.leaves(params))
    moved = costs.update_bytes(chain, params)
    seconds = update_seconds(setup, hypers)
    table.add_row(
      name,
      f'{1e3 * seconds:.2f}',
      f'{1e3 * moved / bandwidth:.2f}',
      f'{seconds * bandwidth / moved:.2f}',
      f'{moved / size:.1f}',
      f'{costs.state_bytes(chain, params) / size:.1f}',
      f'{costs.update_flops(chain, params) / size:.0f}',
    )
  return table


def update_seconds(setup: Setup, hypers: Any) -> float:
  """Returns the shortest time of an update, as for the copy."""
  chain = setup.chain
  params, grads = (_random(setup.shapes.params, seed) for seed in (0, 1))
  state = jax.jit(chain.init)(params)
  update = jax.jit(
    lambda params, state, grads, step, measure: chain.update(
      grads, state, params, step, hypers, measure
    )[:2],
    donate_argnums=(0, 1),
  )
  found = []
  # The first two compile and set SOAP's bases.
  for step in range(_ROUNDS + 2):
    start = time.perf_counter()
    # Without the measurements of a logged step.
    params, state = update(
      params, state, grads, jnp.int32(step + 1), np.bool_(False)
    )
    jax.block_until_ready((params, state))
    found.append(time.perf_counter() - start)
  return min(found[2:])


@functools.partial(jax.jit, static_argnums=0)
def _drawn(shape: tuple[int, ...], key: jax.Array) -> jax.Array:
  return jax.random.normal(key, shape, jnp.float32) / 100


def _random(shapes: Any, seed: int) -> Any:
  """Draws numbers on the device: there may be billions."""
  leaves, structure = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return structure.unflatten(
    [_drawn(s.shape, key) for s, key in zip(leaves, keys, strict=True)]
  )


if __name__ == '__main__':
  main()
