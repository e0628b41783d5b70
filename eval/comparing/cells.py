"""A cell of the comparison: the runs of one optimizer, one for each seed."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from steepest.eval.comparing import accuracy, fairness, statistics
from steepest.eval.comparing.runs import Run


@dataclasses.dataclass(frozen=True)
class Column:
  """A quantity of the table.

  Attributes:
    key: key of summary.json, or 'task/metric'.
    kind: 'loss', 'speed' (depends on the machine), 'count' (exact) or
      'benchmark'.
    lower_is_better: None where it is no contest.
  """

  key: str
  kind: str
  lower_is_better: bool | None

  @property
  def task(self) -> str:
    return self.key.rpartition('/')[0]

  @property
  def metric(self) -> str:
    return self.key.rpartition('/')[2]


COLUMNS = (
  Column('train_loss', 'loss', True),
  Column('eval_loss', 'loss', True),
  Column('tokens_per_second', 'speed', False),
  Column('seconds', 'speed', True),
  Column('flops', 'count', True),
  Column('parameters', 'count', None),
)
# Key of summary.json -> unit of its values.
SOURCE_UNITS = {
  'eval_loss': 'nats per token',
  'eval_bits_per_byte': 'bits per byte',
}


@dataclasses.dataclass(frozen=True)
class Cell:
  """The compared runs of one optimizer in one group.

  Attributes:
    architecture: model.name.
    optimizer: optimizer.name.
    runs: one per seed, empty where every run diverged.
    spreads: column key -> mean and sd over seeds, where all seeds have it.
    per_seed: column key -> the seeds' values.
    scores: 'task/metric' -> score.
    diverged: runs of other seeds that diverged.
    axes: of the group: axis -> value; {} without axes.
    sources: (key of SOURCE_UNITS, source, '' for all) -> the seeds' validation
      losses.
    accuracy: mean over the benchmarks, see accuracy.average; None without one.
  """

  architecture: str
  optimizer: str
  runs: list[Run]
  spreads: dict[str, statistics.Spread]
  per_seed: dict[str, tuple[float, ...]]
  scores: dict[str, accuracy.Score]
  diverged: list[Run]
  axes: dict[str, Any]
  sources: dict[tuple[str, str], tuple[float, ...]]
  accuracy: accuracy.Score | None

  def value(self, key: str) -> float | None:
    """Returns the mean over seeds of a column; None where it is missing."""
    if key in self.spreads:
      return self.spreads[key].mean
    return self.scores[key].mean if key in self.scores else None


def build(
  selection: fairness.Selection,
  optimizer: str,
  scored: Sequence[Column],
  axes: Mapping[str, Any],
) -> Cell:
  """Returns a cell of a selection with the means of its runs."""
  runs = selection.cells[optimizer] if optimizer in selection.cells else []
  per_seed = {}
  for column in COLUMNS:
    values = _all([run.summary or {} for run in runs], column.key)
    if values:
      per_seed[column.key] = values
  scores = {}
  for column in scored:
    score = accuracy.score(runs, column.task, column.metric) if runs else None
    if score is not None:
      scores[column.key] = score
  return Cell(
    architecture=selection.architecture,
    optimizer=optimizer,
    runs=runs,
    spreads={k: statistics.spread(v) for k, v in per_seed.items()},
    per_seed=per_seed,
    scores=scores,
    diverged=[r for r in selection.diverged if r.optimizer == optimizer],
    axes=dict(axes),
    sources=_sources(runs),
    accuracy=accuracy.average_score(
      runs, [(c.task, c.metric) for c in scored if c.key in scores]
    ),
  )


def _sources(
  runs: Sequence[Run],
) -> dict[tuple[str, str], tuple[float, ...]]:
  found = {}
  for key in SOURCE_UNITS:
    held = [(run.summary or {}).get(f'{key}_by_source') or {} for run in runs]
    names = sorted({name for of in held for name in of})
    total = _all([run.summary or {} for run in runs], key)
    if total and names:
      found[key, ''] = total
    for name in names:
      values = _all(held, name)
      if values:
        found[key, name] = values
  return found


def _all(
  summaries: Sequence[Mapping[str, Any]], key: str
) -> tuple[float, ...] | None:
  """Returns a value of each seed; None where one lacks it, as older runs do."""
  values = [s[key] for s in summaries if s.get(key) is not None]
  if not values or len(values) < len(summaries):
    return None
  return tuple(float(value) for value in values)
