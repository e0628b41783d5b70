"""The contents of a run's summary.json, and the table of its parameters."""

import math
from typing import Any

from clu import parameter_overview
import jax
import numpy as np

from steepest.optimizers import costs
from steepest.training import flops
from steepest.training.state import Setup

# Share of the last rows whose mean is the run's training loss.
TAIL = 0.05
# Activity of the loop → its name in the summary's goodput.
PHASES = {
  'train': 'steps',
  'compile': 'compiling',
  'data': 'waiting_for_data',
  'eval': 'evaluating',
  'checkpoint': 'saving',
  'other': 'other',
}


def summarise(
  setup: Setup,
  rows: list[dict[str, Any]],
  steps: int,
  seconds: dict[str, float],
  losses: dict[str, float],
  curvature_passes: int,
  peak_flops: float | None,
) -> dict[str, Any]:
  """Returns what summary.json holds after `steps` steps.

  Args:
    setup: the run's setup.
    rows: the last TAIL of metrics.jsonl.
    steps: steps done.
    seconds: spent on each of PHASES.
    losses: the last validation losses, as logged.
    curvature_passes: passes done beyond one gradient per step.
    peak_flops: FLOP/s of all devices together; None: unknown.
  """
  tokens = steps * setup.batch_size * setup.model.context
  flops_per_token = flops.per_token(setup.shapes.params, setup.model)
  cost = flops.of_estimate(setup.estimator, setup.subset)
  memory = setup.mesh.local_devices[0].memory_stats() or {}
  peak = 'peak_bytes_in_use'
  return {
    'steps': steps,
    'tokens': tokens,
    'seconds': seconds['train'],
    'data_wait_seconds': seconds['data'],
    'compile_seconds': seconds['compile'],
    'eval_seconds': seconds['eval'],
    'checkpoint_seconds': seconds['checkpoint'],
    'train_loss': (
      float(np.mean([row['train/loss'] for row in rows])) if rows else None
    ),
    'eval_loss': losses['eval/loss'] if losses else None,
    'eval_loss_by_source': {
      name.removeprefix('eval/loss/'): value
      for name, value in losses.items()
      if name.startswith('eval/loss/')
    },
    'eval_bits_per_byte': (
      losses['eval/bits_per_byte'] if 'eval/bits_per_byte' in losses else None
    ),
    'eval_bits_per_byte_by_source': {
      name.removeprefix('eval/bits_per_byte/'): value
      for name, value in losses.items()
      if name.startswith('eval/bits_per_byte/')
    },
    'tokens_per_second': tokens / max(seconds['train'], 1e-9),
    'mfu': (
      tokens * flops_per_token / seconds['train'] / peak_flops
      if peak_flops
      else None
    ),
    'mfu_convention': flops.CONVENTION,
    **flops.count(setup.shapes.params),
    'flops': flops_per_token
    * setup.batch_size
    * setup.model.context
    * (steps + curvature_passes * cost)
    + steps * costs.update_flops(setup.chain, setup.shapes.params),
    'curvature_passes': curvature_passes,
    'optimizer_state_bytes': sum(
      math.prod(leaf.shape) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(setup.shapes.opt_state)
    ),
    'peak_memory_bytes': memory[peak] if peak in memory else None,
  }


def goodput(seconds: dict[str, float], total: float) -> dict[str, float]:
  """Returns the shares of a run's time, which sum to 1.

  Restarting is all time outside the loop: startup, downtime, and work since the
  last checkpoint that had to be repeated.

  Args:
    seconds: spent on each of PHASES, without repeated work.
    total: seconds since the run's first start.
  """
  shares = {name: seconds[what] / total for what, name in PHASES.items()}
  return shares | {'restarting': 1 - sum(seconds.values()) / total}


def parameter_table(setup: Setup) -> str:
  """Returns the shapes and sizes of all parameters, as HTML."""
  table = parameter_overview.get_parameter_overview(
    setup.shapes.params, include_stats=False
  )
  return f'<pre>{table}</pre>'
