"""Decides which final runs may stand beside one another, and says why not.

Among the runs of one architecture everything has to be equal except the
optimizer's own settings and what has no influence on the result. The seeds
have to be equal as well, since the differences are taken seed by seed.
"""

from collections.abc import Sequence
import dataclasses
import json
from typing import Any

import numpy as np

from steepest.eval.comparing.runs import Run

# The optimizer's own settings: what is compared.
COMPARED = (
  'optimizer.name',
  'optimizer.lr',
  'optimizer.betas',
  'optimizer.eps',
  'optimizer.weight_decay',
  'optimizer.rho',
  'optimizer.hessian_every',
  'optimizer.hessian_subset',
  'optimizer.hessian_estimator',
  'optimizer.hessian_bias_correction',
  'optimizer.b3',
  'optimizer.alpha',
  'optimizer.momentum',
  'optimizer.precondition_every',
)
# Without influence on losses and parameters. The data are compared by their
# fingerprint, not by where they lie; the benchmarks by their questions.
IRRELEVANT = (
  'seed',
  'microbatches',
  'mesh.data',
  'mesh.fsdp',
  'mesh.tensor',
  'mesh.sequence',
  'model.remat',
  'data.source',
  'data.verify',
  'eval_every',
  'eval_tasks',
  'eval_tasks_every',
  'eval_tasks_limit',
  'eval_tasks_data',
  'checkpoint_every',
  'checkpoints_kept',
  'checkpoints_at',
  'stall_seconds',
  'stop_grace_seconds',
  'wandb_project',
)
# What may differ between optimizers where the study searched it.
_SEARCHED = {
  'warmup_steps': 'schedule.warmup_steps',
  'attention_multiplier': 'parametrization.attention_multiplier',
  'logit_multiplier': 'parametrization.logit_multiplier',
}
# By how much the losses before the first update may differ, relatively: they
# are those of the same weights on the same batch, up to rounding.
_ROUNDING = {'float32': 1e-4}
_COARSE_ROUNDING = 2e-3
# Slowest tenth of a run over its fastest one that points to a busy machine.
_UNSTEADY = 1.25
_FEWEST_ROWS = 20
# What decides how fast a step is, beside the optimizer.
_SPEED = ('microbatches', 'model.remat')


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """A run that is not compared, and why, in words."""

  run: Run
  reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Selection:
  """The final runs of one architecture.

  Attributes:
    architecture: model.name.
    cells: optimizer -> its runs, one per seed of `seeds`, in their order.
    seeds: the seeds that every cell has.
    left_out: runs that differ from the compared ones.
    diverged: runs that would be compared had they not diverged.
    unfinished: runs under way.
    equal: what all compared runs share, key -> value.
  """

  architecture: str
  cells: dict[str, list[Run]]
  seeds: tuple[int, ...]
  left_out: list[LeftOut]
  diverged: list[Run]
  unfinished: list[Run]
  equal: dict[str, Any]


def select(runs: Sequence[Run]) -> Selection:
  """Picks the largest set of comparable runs among those of one architecture.

  Largest: most optimizers, then most runs, then the one read first.

  Raises:
    ValueError: runs of several architectures were given, or none.
  """
  names = {run.architecture for run in runs}
  if len(names) != 1:
    raise ValueError(f'select: needs runs of one architecture, got {names}')
  ended = [run for run in runs if run.status != 'unfinished']
  left_out: list[LeftOut] = []
  ended = _largest_group(ended, left_out)
  cells: dict[str, dict[int, Run]] = {}
  for optimizer in sorted({run.optimizer for run in ended}):
    cells[optimizer] = _one_setting(
      [run for run in ended if run.optimizer == optimizer], left_out
    )
  kept = [run for cell in cells.values() for run in cell.values()]
  finished = {
    name: {s: run for s, run in cell.items() if run.status == 'finished'}
    for name, cell in cells.items()
  }
  finished = {name: cell for name, cell in finished.items() if cell}
  finished = _same_start(finished, left_out)
  seeds = _common_seeds(finished, left_out)
  return Selection(
    architecture=names.pop(),
    cells={n: [cell[s] for s in seeds] for n, cell in finished.items()},
    seeds=seeds,
    left_out=left_out,
    diverged=[run for run in kept if run.status == 'diverged'],
    unfinished=[run for run in runs if run.status == 'unfinished'],
    equal=fingerprint(kept[0]) if kept else {},
  )


def fingerprint(run: Run) -> dict[str, Any]:
  """Returns what has to be equal among compared runs, key -> value."""
  free = [*COMPARED, *IRRELEVANT]
  # What a study tuned is the optimizer's own.
  for name, key in _SEARCHED.items():
    if run.study.get(f'space_{name}'):
      free.append(key)
  values = {
    key: value
    for key, value in run.config.items()
    if key not in free and not key.startswith('study.')
  }
  values['tokens'] = run.planned_tokens
  if run.summary is not None:
    values['data fingerprint'] = run.summary['data_fingerprint']
  return values


def differences(run: Run, reference: dict[str, Any]) -> tuple[str, ...]:
  """Says in which values `run` differs from `reference`, in words."""
  own = fingerprint(run)
  keys = [*reference, *(k for k in own if k not in reference)]
  return tuple(
    f'{key} is {_shown(own, key)}, not {_shown(reference, key)}'
    for key in keys
    if _shown(own, key) != _shown(reference, key)
  )


def speed_setup(run: Run) -> tuple[str, ...]:
  """Returns what has to be equal where times are compared, in words."""
  devices = run.env['devices'] if 'devices' in run.env else []
  kind = run.env['device_kind'] if 'device_kind' in run.env else 'unknown'
  processes = run.env['process_count'] if 'process_count' in run.env else 1
  cores = run.env['cpu_cores'] if 'cpu_cores' in run.env else 'unknown'
  mesh = {k: v for k, v in run.config.items() if k.startswith('mesh.')}
  return (
    f'{len(devices)} × {kind}',
    f'processes={processes}',
    f'cpu_cores={cores}',
    *(f'{key}={value}' for key, value in sorted(mesh.items())),
    *(f'{key}={run.config[key]}' for key in _SPEED if key in run.config),
  )


def _shown(values: dict[str, Any], key: str) -> str:
  return json.dumps(values[key]) if key in values else 'absent'


def _largest_group(runs: Sequence[Run], left_out: list[LeftOut]) -> list[Run]:
  """Returns the largest group of equal runs; the others go to `left_out`."""
  groups: dict[str, list[Run]] = {}
  for run in runs:
    key = json.dumps(fingerprint(run), sort_keys=True)
    groups.setdefault(key, []).append(run)
  if not groups:
    return []
  best = max(
    groups.values(), key=lambda g: (len({r.optimizer for r in g}), len(g))
  )
  reference = fingerprint(best[0])
  for group in groups.values():
    if group is not best:
      left_out += [LeftOut(r, differences(r, reference)) for r in group]
  return best


def _one_setting(
  runs: Sequence[Run], left_out: list[LeftOut]
) -> dict[int, Run]:
  """Returns seed -> run for the optimizer's setting with the most seeds."""
  settings: dict[str, list[Run]] = {}
  for run in runs:
    own = {k: run.config[k] for k in COMPARED if k in run.config}
    settings.setdefault(json.dumps(own), []).append(run)
  best = max(settings, key=lambda s: len({run.seed for run in settings[s]}))
  reference = json.loads(best)
  cell: dict[int, Run] = {}
  for setting, group in settings.items():
    own = json.loads(setting)
    for run in group:
      if setting != best:
        reasons = tuple(
          f'{key} is {_shown(own, key)}, not {_shown(reference, key)} as in '
          "this cell's other runs"
          for key in COMPARED
          if _shown(own, key) != _shown(reference, key)
        )
        left_out.append(LeftOut(run, reasons))
      elif run.seed in cell:
        twin = cell[run.seed].name
        left_out.append(LeftOut(run, (f'repeats {twin}',)))
      else:
        cell[run.seed] = run
  return cell


def first_loss(run: Run) -> float | None:
  """Returns the training loss before the first update; None if not logged."""
  row = run.rows[0] if run.rows else {}
  if 'train/loss' not in row or row['step'] != 0:
    return None
  return float(row['train/loss'])


def _same_start(
  cells: dict[str, dict[int, Run]], left_out: list[LeftOut]
) -> dict[str, dict[int, Run]]:
  """Leaves out runs of other initial weights or another first batch.

  Of each seed those stay that most others agree with; of as many, the first.
  """
  kept: dict[str, dict[int, Run]] = {name: {} for name in cells}
  for seed in sorted({seed for cell in cells.values() for seed in cell}):
    runs = [cell[seed] for cell in cells.values() if seed in cell]
    like = [[_starts_alike(a, b) for b in runs] for a in runs]
    reference = max(range(len(runs)), key=lambda i: sum(like[i]))
    for run, same in zip(runs, like[reference]):
      if same:
        kept[run.optimizer][seed] = run
      else:
        other = runs[reference]
        reason = (
          f'its loss before the first update is {first_loss(run)}, not '
          f'{first_loss(other)} as of {other.name}: other initial weights or '
          'another first batch'
        )
        left_out.append(LeftOut(run, (reason,)))
  return {name: cell for name, cell in kept.items() if cell}


def _starts_alike(a: Run, b: Run) -> bool:
  losses = first_loss(a), first_loss(b)
  if None in losses:
    return True
  kind = str(a.config['dtype.compute']) if 'dtype.compute' in a.config else ''
  within = _ROUNDING[kind] if kind in _ROUNDING else _COARSE_ROUNDING
  return abs((losses[0] or 0.0) / (losses[1] or 1.0) - 1) <= within


def _common_seeds(
  cells: dict[str, dict[int, Run]], left_out: list[LeftOut]
) -> tuple[int, ...]:
  """Returns the seeds that all cells share.

  Where there is none, the cells with the fewest seeds drop out until there
  is one. Runs of other seeds go to `left_out`.
  """
  while cells:
    shared = set.intersection(*(set(cell) for cell in cells.values()))
    if shared:
      break
    fewest = min(cells, key=lambda name: len(cells[name]))
    left_out += [
      LeftOut(run, (f'seed {s}: no other optimizer has finished it',))
      for s, run in cells.pop(fewest).items()
    ]
  else:
    return ()
  for cell in cells.values():
    for seed, run in cell.items():
      if seed not in shared:
        lacking = [n for n, other in cells.items() if seed not in other]
        reason = f'seed {seed}: not finished for {", ".join(lacking)}'
        left_out.append(LeftOut(run, (reason,)))
  return tuple(sorted(shared))


def warnings(runs: Sequence[Run]) -> list[str]:
  """Says which versions or commits differ, and whether a machine was busy."""
  lines = []
  for key in ('git_commit', 'python', 'platform'):
    values = {str(run.env[key]) for run in runs if key in run.env}
    if len(values) > 1:
      lines.append(f'{key} differs among the runs: {", ".join(sorted(values))}')
  names = {n for r in runs if 'versions' in r.env for n in r.env['versions']}
  for name in sorted(names):
    values = {
      str(run.env['versions'][name])
      for run in runs
      if 'versions' in run.env and name in run.env['versions']
    }
    if len(values) > 1:
      lines.append(
        f'{name} differs among the runs: {", ".join(sorted(values))}'
      )
  busy = unsteady(runs)
  return [*lines, busy] if busy else lines


def speed_variation(run: Run) -> float | None:
  """Returns the slowest tenth of a run over its fastest one, in seconds.

  On an idle machine that is below 1.1 or so. None with fewer than 20 logged
  steps.
  """
  tokens_P, seconds_P = run.series('seconds', 'tokens')
  if tokens_P.size < _FEWEST_ROWS:
    return None
  ends = np.linspace(tokens_P[0], tokens_P[-1], 11)
  tenths = np.diff(np.interp(ends, tokens_P, seconds_P))
  return float(tenths.max() / tenths.min()) if tenths.min() > 0 else None


def unsteady(runs: Sequence[Run]) -> str:
  """Says that times are those of a busy machine; '' if nothing points to it."""
  found = [v for run in runs if (v := speed_variation(run)) is not None]
  busy = [v for v in found if v > _UNSTEADY]
  if not busy:
    return ''
  return (
    f'times are not those of an idle machine: {len(busy)} of {len(runs)} runs '
    f'were up to {max(busy):.1f} times as slow in one tenth as in another'
  )
