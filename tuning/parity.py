"""Whether the search of a study treats its optimizers alike."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from steepest.tuning import cells, search, space

# Factors between rates that differ by less count as equal.
_SAME = 1.05


def notes(config: ConfigDict) -> list[str]:
  """Returns what is unequal in the searches of a study, a line each.

  Trials, the factor between neighbouring rates, the factor that all rates span,
  and how many hyperparameters are searched: with more of any, an optimizer has
  a better chance to come near its best.

  Raises:
    ValueError: as `search.first_names`.
  """
  names = cells.optimizers(config)
  trials = {name: len(search.first_names(config, name)) for name in names}
  found = {name: space.dimensions(config, name) for name in names}
  said = []
  if len(set(trials.values())) > 1:
    said.append(
      f'unequal budgets, in trials: {_listed(trials)}; study.search=random or '
      'tpe gives all the same'
    )
  rates = {name: dimensions[0].values for name, dimensions in found.items()}
  if config.study.search == 'grid':
    gaps = {n: max(b / a for a, b in zip(r, r[1:])) for n, r in rates.items()}
    if _unequal(gaps):
      said.append(f'unequal grids, rates in factors of {_listed(gaps)}')
  spans = {name: lrs[-1] / lrs[0] for name, lrs in rates.items()}
  if _unequal(spans):
    said.append(f'unequal ranges, rates span factors of {_listed(spans)}')
  counts = {name: len(dimensions) for name, dimensions in found.items()}
  if len(set(counts.values())) > 1 and config.study.search != 'grid':
    said.append(
      f'unequal searches, in hyperparameters: {_listed(counts)}; as many '
      'trials cover more of them less well'
    )
  return said


def _unequal(factors: Mapping[str, float]) -> bool:
  return max(factors.values()) > min(factors.values()) * _SAME


def _listed(values: Mapping[str, float]) -> str:
  return ', '.join(f'{name} {value:.4g}' for name, value in values.items())
