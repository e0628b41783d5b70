"""What mattered in the searches: losses off the best values, importances."""

from collections.abc import Sequence
import math

import numpy as np
import pandas as pd
from scipy import interpolate

from steepest.report import tables, tuning, words
from steepest.report.section import Block, Cell, Column, Section, Table

# Factors off the best value at which the loss is told; for memories b, off
# 1 − b.
FACTORS = {0.25: '¼ ×', 0.5: '½ ×', 2.0: '2 ×', 4.0: '4 ×'}
# The widest range that the sensitivity to the rate is taken over, as a factor
# on either side of the best rate.
WIDEST = 4.0
_CLOSE = 1e-4
# Fewest finished trials a searched dimension that an importance is told from.
_PER_DIMENSION = 5

Points = list[tuple[float, float]]


def sections(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of what mattered in the searches."""
  found = tuning.searches(comparison.tables)
  blocks = [*_sensitivities(found), *_importances(found)]
  if not blocks:
    return []
  return [Section('sensitivity', 'Which hyperparameters mattered', blocks)]


def profile(search: tuning.Search, name: str) -> Points:
  """Returns (coordinate, loss) of trials that differ from the best in `name`.

  Rising; losses of the same value are averaged, infinite where a trial
  diverged. Trials that were ended early have no final loss and are left out.
  """
  if search.best is None or name not in search.values:
    return []
  ended = search.trials['status'].isin(['finished', 'diverged']).to_numpy()
  others = [n for n in search.values if n != name]
  best = search.values.iloc[search.best]
  alike = (search.values[others] == best[others]).all(axis=1).to_numpy()
  kept = ended & alike
  frame = pd.DataFrame(
    {
      'x': [tuning.coordinate(name, v) for v in search.values[name][kept]],
      'loss': search.trials['loss'][kept].to_numpy(float),
    }
  )
  means = frame[frame['x'] > 0].groupby('x')['loss'].mean()
  return [(float(x), float(loss)) for x, loss in means.items()]


def loss_off(points: Points, factor: float) -> tuple[float | None, str]:
  """Returns the loss at a factor off the best above the best, and how known.

  Between tried values by a monotone cubic in the logarithm (scipy's PCHIP),
  never beyond them.

  Returns:
    Nats, or None; and 'tried', 'interpolated', 'diverged' or 'not tried'.
  """
  best, lowest = min(points, key=lambda point: point[1])
  x = math.log(best * factor)
  known = [(math.log(value), loss) for value, loss in points]
  at = [loss for other, loss in known if abs(other - x) < _CLOSE]
  if at:
    return (
      (at[0] - lowest, 'tried') if math.isfinite(at[0]) else (None, 'diverged')
    )
  below = [point for point in known if point[0] < x]
  above = [point for point in known if point[0] > x]
  if not below or not above:
    return None, 'not tried'
  ends = [math.isfinite(below[-1][1]), math.isfinite(above[0][1])]
  if not all(ends):
    return None, 'not tried' if any(ends) else 'diverged'
  finite = [point for point in known if math.isfinite(point[1])]
  curve = interpolate.PchipInterpolator(*np.transpose(finite))
  return float(curve(x)) - lowest, 'interpolated'


def rate_sensitivity(
  points: Points, initial: float, low: float, high: float
) -> float:
  """Returns the expected deviation of the loss from the best, in nats.

  The mean over log lr of min(loss, loss at initialization) − lowest loss
  (Wortsman et al., arXiv 2309.14322, section 2.2).

  Args:
    points: (rate, loss) that reach from `low` to `high`; infinite: diverged.
    initial: loss at initialization, in nats.
    low: lowest rate of the range.
    high: highest.

  Raises:
    ValueError: the points do not reach that far.
  """
  x_P = np.log([rate for rate, _ in points])
  if x_P[0] > math.log(low) + _CLOSE or x_P[-1] < math.log(high) - _CLOSE:
    raise ValueError(
      f'rate_sensitivity: rates from {points[0][0]:g} to {points[-1][0]:g} do '
      f'not hold the range from {low:g} to {high:g}'
    )
  y_P = np.minimum([loss for _, loss in points], initial)
  a, b = max(x_P[0], math.log(low)), min(x_P[-1], math.log(high))
  inside = [y for x, y in zip(x_P, y_P) if a - _CLOSE <= x <= b + _CLOSE]
  curve = interpolate.PchipInterpolator(x_P, y_P)
  lowest = min([*inside, float(curve(a)), float(curve(b))])
  return float(curve.integrate(a, b)) / (b - a) - lowest


def reach(points: Points) -> float:
  """Returns the factor that was tried on either side of the best."""
  best = min(points, key=lambda point: point[1])[0]
  return min(best / points[0][0], points[-1][0] / best)


def _sensitivities(found: Sequence[tuning.Search]) -> list[Block]:
  """Returns the table of losses off the best value, where trials tell them.

  All optimizers of a model get the same range of rates around their best
  ones: the factor that all of them have tried, WIDEST at most. A search whose
  best rate is at an edge has no range, and takes none away.
  """
  rows: list[Sequence[Cell | str] | str] = []
  for group in dict.fromkeys(search.group for search in found):
    lines: list[Sequence[Cell | str]] = []
    peers = [search for search in found if search.group == group]
    curves = {id(s): profile(s, 'lr') for s in peers}
    factors = [
      reach(points)
      for points in curves.values()
      if len(points) > 2 and reach(points) > 1 + _CLOSE
    ]
    factor = min([WIDEST, *factors])
    for search in peers:
      for name in search.values:
        points = profile(search, name)
        if len(points) < 3:
          continue
        best = min(points, key=lambda point: point[1])[0]
        over_range = words.MISSING
        initial = float(search.trials['first_loss'].mean())
        tried = reach(points) > factor - _CLOSE and factor > 1 + _CLOSE
        if name == 'lr' and tried and math.isfinite(initial):
          value = rate_sensitivity(
            points, initial, best / factor, best * factor
          )
          over_range = f'{value:.4f}'
        lines.append(
          [
            Cell(words.name(search.optimizer), optimizer=search.optimizer),
            tuning.label(name),
            words.rate(best),
            *(_off(*loss_off(points, off)) for off in FACTORS),
            over_range,
          ]
        )
    if lines:
      note = f': mean over rates within {factor:.3g} × of the best'
      rows += [words.named(group) + (note if factors else ''), *lines]
  if not rows:
    return []
  return [
    Table(
      'How much worse the loss is off the best value',
      [
        Column('Optimizer'),
        Column('Hyperparameter'),
        Column('Best', number=True),
        *(
          Column(sign, 'nats', True, 'Loss above the best at')
          for sign in FACTORS.values()
        ),
        Column('Mean over rates', 'nats', True),
      ],
      rows,
      note='~ between tried values, by a monotone cubic in the logarithm. The '
      'mean over rates is the learning-rate sensitivity of Wortsman et al. '
      '(arXiv 2309.14322).',
    )
  ]


def _off(value: float | None, status: str) -> Cell:
  if value is None:
    style = 'bad' if status == 'diverged' else 'soft'
    return Cell(status, style=style)
  sign = '~ ' if status == 'interpolated' else ''
  return Cell(f'{sign}{value:.4f}', value=value)


def importances(search: tuning.Search) -> dict[str, float]:
  """Returns each searched hyperparameter's share of what made trials good.

  PED-ANOVA (Watanabe et al., arXiv 2304.10255) by Optuna: how unlike the
  better quarter of the trials is to all of them; diverged trials are the worst.
  {} where there are too few trials for the dimensions.
  """
  # A second to import, and only where several dimensions were searched.
  import optuna

  names = [
    n
    for n in search.values
    if (search.values[n].map(lambda v, n=n: tuning.coordinate(n, v)) > 0).all()
  ]
  ended = search.trials['status'].isin(['finished', 'diverged']).to_numpy()
  if len(names) < 2 or ended.sum() < _PER_DIMENSION * len(names):
    return {}
  values = search.values.loc[ended, names]
  losses = search.trials['loss'][ended].to_numpy(float)
  finite = losses[np.isfinite(losses)]
  losses = np.where(np.isfinite(losses), losses, finite.max() + 1.0)
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  study = optuna.create_study()
  ranges: dict[str, optuna.distributions.BaseDistribution] = {}
  for name in names:
    x = values[name].map(lambda v, n=name: tuning.coordinate(n, v))
    ranges[name] = optuna.distributions.FloatDistribution(
      float(x.min()), float(x.max()), log=True
    )
  for (_, row), loss in zip(values.iterrows(), losses, strict=True):
    study.add_trial(
      optuna.trial.create_trial(
        params={n: float(tuning.coordinate(n, row[n])) for n in names},
        distributions=ranges,
        value=float(loss),
      )
    )
  evaluator = optuna.importance.PedAnovaImportanceEvaluator(
    target_quantile=0.25
  )
  found = optuna.importance.get_param_importances(study, evaluator=evaluator)
  return {str(name): float(share) for name, share in found.items()}


def _importances(found: Sequence[tuning.Search]) -> list[Block]:
  shares = [(search, importances(search)) for search in found]
  shares = [(search, of) for search, of in shares if of]
  if not shares:
    return []
  names = sorted(
    {n for _, of in shares for n in of}, key=lambda n: (n != 'lr', n)
  )
  rows: list[Sequence[Cell | str] | str] = []
  group = None
  for search, of in shares:
    if search.group != group:
      rows.append(words.named(search.group))
      group = search.group
    rows.append(
      [
        Cell(words.name(search.optimizer), optimizer=search.optimizer),
        *(
          Cell(f'{100 * of[name]:.0f}', value=of[name])
          if name in of
          else words.MISSING
          for name in names
        ),
      ]
    )
  return [
    Table(
      'Which hyperparameters mattered',
      [
        Column('Optimizer'),
        *(Column(words.head(name), '%', True) for name in names),
      ],
      rows,
      note='Share of what sets the better quarter of the trials apart '
      '(PED-ANOVA, arXiv 2304.10255, by Optuna), within the ranges that were '
      f'searched; where there are {_PER_DIMENSION} trials or more a dimension.',
    )
  ]
