"""Differences between the cells of a group, and who is best by enough."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools

from steepest.eval.comparing import accuracy, cells as cells_lib, statistics
from steepest.eval.comparing.cells import Cell, Column


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Who is best in one column of one group, and whether that holds.

  Attributes:
    architecture: model.name.
    column: what is compared.
    best: the optimizer with the best mean; None where nothing is compared.
    conclusion: 'wins' (the difference to every other one counts; of exact
      counts, to every one with another number), 'partly', 'tie' (to none),
      'unknown' (one seed), 'equal' (the same number), 'alone', 'chance' (the
      best is not above chance) or 'incomparable'.
    differences: other optimizer -> difference of the best to it, corrected for
      all pairs of the column.
    reason: why nothing is compared, in words.
  """

  architecture: str
  column: Column
  best: str | None
  conclusion: str
  differences: dict[str, statistics.Difference]
  reason: str = ''

  @property
  def leaders(self) -> list[str]:
    """The best and those with the very same number."""
    same = [name for name, d in self.differences.items() if d.value == 0]
    return [] if self.best is None else [self.best, *same]


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two optimizers in one column of a group.

  Attributes:
    first, second: optimizers.
    difference: first minus second, over the same seeds or questions, corrected
      for all pairs of the column.
  """

  first: str
  second: str
  difference: statistics.Difference


@dataclasses.dataclass(frozen=True)
class SourceLoss:
  """The validation loss of one source at the end, in one unit.

  Attributes:
    key: 'eval_loss' or 'eval_bits_per_byte'.
    source: its name; '' for the mean over all.
    unit: 'nats per token' or 'bits per byte'.
    means: optimizer -> mean and deviation over seeds.
    pairs: every two optimizers, corrected for all of them.
  """

  key: str
  source: str
  unit: str
  means: dict[str, statistics.Spread]
  pairs: list[Pair]


_Compare = Callable[[str, str], statistics.Difference]


def all_pairs(names: Sequence[str], compare: _Compare) -> list[Pair]:
  """Compares every two of `names`, corrected for their number."""
  found = {(a, b): compare(a, b) for a, b in itertools.combinations(names, 2)}
  return [
    Pair(a, b, difference)
    for (a, b), difference in statistics.correct(found).items()
  ]


def seed_pairs(values: Mapping[str, Sequence[float]]) -> list[Pair]:
  """Compares every two optimizers over the seeds that they share.

  Args:
    values: per optimizer the values of the same seeds in the same order.
  """
  return all_pairs(
    list(values), lambda a, b: statistics.seed_difference(values, a, b)
  )


def column_pairs(column: Column, cells: Sequence[Cell]) -> list[Pair]:
  """Compares every two cells that have a column."""
  have = {c.optimizer: c for c in cells if c.value(column.key) is not None}
  return all_pairs(list(have), _comparer(column, have))


def average_pairs(cells: Sequence[Cell]) -> list[Pair]:
  """Compares the mean accuracy of every two cells that have one."""
  have = {cell.optimizer: cell for cell in cells if cell.accuracy is not None}
  metrics = shared_metrics(list(have.values()))

  def compare(a: str, b: str) -> statistics.Difference:
    return accuracy.average_difference(have[a].runs, have[b].runs, metrics)

  return all_pairs(list(have), compare) if metrics else []


def shared_metrics(cells: Sequence[Cell]) -> list[tuple[str, str]]:
  """Returns (task, metric) of the accuracies that every cell has, averaged."""
  held = [set(cell.scores) for cell in cells]
  if not held:
    return []
  shared = set.intersection(*held)
  listed = [key.rpartition('/') for key in cells[0].scores if key in shared]
  return accuracy.averaged([(task, metric) for task, _, metric in listed])


def source_losses(cells: Sequence[Cell]) -> list[SourceLoss]:
  """Returns the losses of each source with all pairs, nats first."""
  keys = dict.fromkeys(key for cell in cells for key in cell.sources)
  result = []
  for key, source in keys:
    values = {
      cell.optimizer: cell.sources[key, source]
      for cell in cells
      if (key, source) in cell.sources
    }
    result.append(
      SourceLoss(
        key,
        source,
        cells_lib.SOURCE_UNITS[key],
        {name: statistics.spread(of) for name, of in values.items()},
        seed_pairs(values),
      )
    )
  return result


def decide(
  architecture: str,
  column: Column,
  cells: Sequence[Cell],
  pairs: Sequence[Pair],
  reason: str = '',
) -> Verdict | None:
  """Compares the cell with the best mean with each of the others.

  Args:
    architecture: model.name.
    column: what is compared.
    cells: of the group.
    pairs: of `column_pairs`.
    reason: why nothing is compared; '' where nothing speaks against it.
  """
  if column.lower_is_better is None:
    return None
  have = {
    cell.optimizer: cell for cell in cells if cell.value(column.key) is not None
  }
  if not have:
    return None
  if reason:
    return Verdict(architecture, column, None, 'incomparable', {}, reason)
  values = {name: cell.value(column.key) or 0.0 for name, cell in have.items()}
  pick = min if column.lower_is_better else max
  best = pick(values, key=lambda name: values[name])
  if len(values) == 1:
    return Verdict(architecture, column, best, 'alone', {})
  differences = against(pairs, best)
  return Verdict(
    architecture,
    column,
    best,
    _conclusion(have[best], column, differences),
    differences,
  )


def against(
  pairs: Sequence[Pair], name: str
) -> dict[str, statistics.Difference]:
  """Returns other optimizer -> difference of `name` to it."""
  found = {}
  for pair in pairs:
    if pair.first == name:
      found[pair.second] = pair.difference
    elif pair.second == name:
      found[pair.first] = pair.difference.reversed()
  return found


def _comparer(column: Column, cells: Mapping[str, Cell]) -> _Compare:
  """Returns the function that compares two cells in `column`."""

  def exact(a: str, b: str) -> statistics.Difference:
    value = (
      cells[a].spreads[column.key].mean - cells[b].spreads[column.key].mean
    )
    return statistics.Difference(value, 0.0, 0.0, 'exact')

  def questions(a: str, b: str) -> statistics.Difference:
    return accuracy.difference(
      cells[a].runs, cells[b].runs, column.task, column.metric
    )

  def seeds(a: str, b: str) -> statistics.Difference:
    groups = {name: cell.per_seed[column.key] for name, cell in cells.items()}
    return statistics.seed_difference(groups, a, b)

  if column.kind == 'count':
    return exact
  if column.kind == 'benchmark':
    return questions
  return seeds


def _conclusion(
  best: Cell,
  column: Column,
  differences: Mapping[str, statistics.Difference],
) -> str:
  if column.kind == 'benchmark':
    if best.scores[column.key].above_chance is False:
      return 'chance'
  elif all(d.value == 0 for d in differences.values()):
    return 'equal'
  exceeds = [
    d.exceeds
    for d in differences.values()
    if column.kind != 'count' or d.value != 0
  ]
  if None in exceeds:
    return 'unknown'
  if all(exceeds):
    return 'wins'
  return 'partly' if any(exceeds) else 'tie'
