"""Selects the final runs that may be compared.

Runs of a group that are alike in everything but the optimizer and its
hyperparameters, and start from the same weights on the same batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from steepest.report import tables
from steepest.report.tables import Tables

# Keys of `optimizer.` that are no optimizer's own.
SHARED = ('decay_mode', 'clip_norm')
# Keys without influence on losses and parameters. Data are compared by
# fingerprint, not by location; benchmarks by their questions.
IRRELEVANT = (
  'seed microbatches mesh.data mesh.fsdp mesh.tensor mesh.sequence model.remat '
  'model.scan_layers mesh.shard_optimizer_over_data '
  'data.source data.verify eval_every eval_tasks eval_tasks_every '
  'eval_tasks_limit eval_tasks_data checkpoint_every checkpoints_kept '
  'checkpoints_at stall_seconds stop_grace_seconds wandb_project '
  'profile_steps debug_nans'
).split()
# Relative tolerance of the losses before the first update: the same weights on
# the same batch, up to rounding.
_ROUNDING = {'float32': 1e-4}
_COARSE_ROUNDING = 2e-3


def select(tables_: Tables) -> tuple[pd.DataFrame, pd.DataFrame]:
  """Picks the final runs to compare.

  From each group, the largest set that is alike: with the most optimizers, then
  the most runs, then read first. From each optimizer, the setting with the most
  seeds.

  Returns:
    The compared rows of runs, and run, group, reason of the others.
  """
  runs = tables_.runs
  compared, left_out = [], []
  for group, finals in runs[runs['stage'] == 'final'].groupby(
    'group', sort=False
  ):
    kept, out = _select(finals, searched_keys(runs, finals))
    compared.append(kept)
    left_out += [{'run': r, 'group': group, 'reason': why} for r, why in out]
  return (
    pd.concat(compared) if compared else runs.iloc[:0],
    pd.DataFrame(left_out, columns=['run', 'group', 'reason']),
  )


def searched_keys(runs: pd.DataFrame, finals: pd.DataFrame) -> list[str]:
  """Returns the columns that studies searched besides the optimizer's own."""
  trials = runs[(runs['stage'] == 'tune') & runs['cell'].isin(finals['cell'])]
  return [
    column
    for column in trials
    if column.startswith(('config.schedule.', 'config.parametrization.'))
    and any(of[column].nunique() > 1 for _, of in searches(trials))
  ]


def told(
  runs: pd.DataFrame, searched: Sequence[str], free: Sequence[str] = ()
) -> list[str]:
  """Returns the columns in which runs of different optimizers must be equal.

  Args:
    runs: whose columns are returned.
    searched: from searched_keys; these may differ.
    free: others that may differ.
  """
  skipped = {*searched, *(f'config.{key}' for key in (*IRRELEVANT, *free))}
  columns = [
    column
    for column in runs
    if column.startswith('config.')
    and not column.startswith('config.study.')
    and not _is_own(column)
    and column not in skipped
  ]
  others = ('planned_tokens', 'data_fingerprint')
  return columns + [c for c in others if c in runs and c not in free]


def _is_own(column: str) -> bool:
  """Whether a column is an optimizer's own hyperparameter."""
  _, prefix, key = column.partition('config.optimizer.')
  return bool(prefix) and key not in SHARED


def _select(
  finals: pd.DataFrame, searched: Sequence[str]
) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
  out: list[tuple[str, str]] = []
  under_way = finals['status'] == 'unfinished'
  out += [(run, 'still under way') for run in finals.loc[under_way, 'run']]
  finals = finals[~under_way]
  if not len(finals):
    return finals, out
  own = [*filter(_is_own, finals), *searched]
  finals = _alike(
    finals,
    told(finals, searched),
    out,
    lambda of: (of['optimizer'].nunique(), len(of)),
  )
  cells = []
  for _, of in finals.groupby('optimizer', sort=True):
    suffix = ' as in the other runs of its optimizer'
    seeds = lambda of: of['seed'].nunique()
    best = _alike(of, own, out, seeds, suffix)
    repeated = best['seed'].duplicated()
    out += [
      (run, f'repeats seed {seed}')
      for run, seed in best[repeated][['run', 'seed']].to_numpy()
    ]
    cells.append(best[~repeated])
  kept = _same_start(pd.concat(cells), out)
  return kept, out


def _alike(
  runs: pd.DataFrame,
  columns: Sequence[str],
  out: list[tuple[str, str]],
  size: Callable[[pd.DataFrame], Any],
  suffix: str = '',
) -> pd.DataFrame:
  """Returns the largest set of runs that are equal in `columns`."""
  rows = runs[[*columns]].itertuples(index=False)
  # Not NUL: pandas 2 compares such strings up to the first NUL only.
  keys = pd.Series(['\x1f'.join(map(str, row)) for row in rows], runs.index)
  sets = [runs[keys == key] for key in keys.unique()]
  best = max(sets, key=size)
  for of in sets:
    if of is not best:
      why = differences(of.iloc[0], best.iloc[0], columns) + suffix
      out += [(run, why) for run in of['run']]
  return best


def differences(
  run: Mapping[str, Any], other: Mapping[str, Any], columns: Sequence[str]
) -> str:
  """Says in which columns two runs differ."""
  return '; '.join(
    f'{column.removeprefix("config.").replace("_", " ")} is '
    f'{_shown(run[column])}, not {_shown(other[column])}'
    for column in columns
    if str(run[column]) != str(other[column])
  )


def _shown(value: Any) -> str:
  return 'absent' if pd.isna(value) else str(value)


def _same_start(runs: pd.DataFrame, out: list[tuple[str, str]]) -> pd.DataFrame:
  """Leaves out runs with other initial weights or another first batch.

  Keeps, for each seed, the largest set of runs that agree; of equals the first.
  """
  dropped = []
  for _, of in runs.groupby('seed'):
    known = of[of['first_loss'].notna()]
    if len(known) < 2:
      continue
    kind = tables.config(of.iloc[0], 'dtype.compute')
    within = _ROUNDING[kind] if kind in _ROUNDING else _COARSE_ROUNDING
    first = known['first_loss'].to_numpy()
    alike = abs(first[:, None] / first[None, :] - 1) <= within
    reference = int(alike.sum(1).argmax())
    for i, (index, run) in enumerate(known.iterrows()):
      if not alike[reference, i]:
        dropped.append(index)
        other = known.iloc[reference]
        out.append(
          (
            run['run'],
            f'its loss before the first update is {run["first_loss"]:.6g}, '
            f'not {other["first_loss"]:.6g} as in {other["run"]}: other '
            'initial weights or another first batch',
          )
        )
  return runs.drop(index=dropped)


def searches(trials: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
  """Returns the trials of each search: one cell on one proxy."""
  proxy = ['config.model.width', 'config.model.num_layers', 'planned_tokens']
  keys = ['cell', 'config.parametrization.kind', *proxy]
  keys = [key for key in keys if key in trials]
  return list(trials.groupby(keys, sort=True)) if len(trials) else []
