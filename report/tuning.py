"""How each optimizer was tuned: its trials, their curves, what mattered."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import interpolate

from steepest.report import selection, tables, theme, words
from steepest.report.section import (
  Block,
  Cell,
  Column,
  Figure,
  Section,
  Switch,
  Table,
)

# Factors off the best value at which the loss is told; for memories b, off
# 1 − b.
FACTORS = {0.25: '¼ ×', 0.5: '½ ×', 2.0: '2 ×', 4.0: '4 ×'}
# The widest range that the sensitivity to the rate is taken over, as a factor
# on either side of the best rate.
WIDEST = 4.0
_CLOSE = 1e-4
# Optimizers up to which the searches of a model share a panel.
_TOGETHER = 6
# Fewest finished trials a searched dimension that an importance is told from.
_PER_DIMENSION = 5


@dataclasses.dataclass(frozen=True)
class Search:
  """The trials of one optimizer on one proxy.

  Attributes:
    group: model, and the axes that got a search of their own, as shown.
    optimizer: optimizer.name.
    trials: rows of tables.runs that ended, in order.
    values: of every searched hyperparameter in each trial, its columns; those
      that all trials share are left out.
    under_way: trials that have not ended.
    finals: rows of tables.runs that the search served.
  """

  group: str
  optimizer: str
  trials: pd.DataFrame
  values: pd.DataFrame
  under_way: int
  finals: pd.DataFrame

  @property
  def best(self) -> int | None:
    """Position of the trial of the lowest loss; None where none finished."""
    losses = self.trials['loss'].to_numpy(float)
    if not len(losses) or not np.isfinite(losses).any():
      return None
    return int(np.argmin(losses))

  def count(self, status: str) -> int:
    return int((self.trials['status'] == status).sum())


def searches(found: tables.Tables) -> list[Search]:
  """Returns the searches of all studies, by model and optimizer."""
  runs = found.runs
  result = []
  for _, frame in selection.searches(runs[runs['stage'] == 'tune']):
    first = frame.iloc[0]
    ended = frame[frame['status'] != 'unfinished']
    rows = [tables.hyperparameters(row) for row in ended.to_dict('records')]
    values = pd.DataFrame(rows, index=ended.index)
    varied = [n for n in values if values[n].nunique(dropna=False) > 1]
    finals = runs[(runs['stage'] == 'final') & (runs['cell'] == first['cell'])]
    result.append(
      Search(
        str(first['cell']).removesuffix(f' · {first["optimizer"]}'),
        str(first['optimizer']),
        ended,
        values[sorted(varied, key=lambda name: (name != 'lr', name))],
        len(frame) - len(ended),
        finals,
      )
    )
  return result


def sections(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of the searches."""
  found = searches(comparison.tables)
  if not found:
    return []
  looks = theme.styles(comparison.tables.runs['optimizer'])
  blocks: list[Block] = []
  figure = _figure(found, looks)
  if figure is not None:
    blocks.append(figure)
  blocks.append(_table(found))
  blocks += _sensitivities(found)
  blocks += _importances(found)
  return [Section('tuning', 'How they were tuned', blocks, folded=False)]


def coordinate(name: str, value: float) -> float:
  """Returns the value, of a memory b its 1 − b: what is searched in logs."""
  return 1 - value if name in ('b1', 'b2', 'b3') else value


def label(name: str) -> str:
  """Returns what `coordinate` of a hyperparameter is called."""
  if name == 'lr':
    return 'Peak learning rate'
  if name in ('b1', 'b2', 'b3'):
    return f'1 − {words.name(name)}'
  return words.capitalized(words.name(name).replace('_', ' '))


# Tuning curves.


def _figure(
  found: Sequence[Search], looks: Mapping[str, Mapping[str, str]]
) -> Figure | None:
  """Draws every trial's loss over each hyperparameter that was searched."""
  found = [search for search in found if search.best is not None]
  names = list(dict.fromkeys(n for search in found for n in search.values))
  names.sort(key=lambda name: name != 'lr')
  if not names:
    return None
  groups = list(dict.fromkeys(search.group for search in found))
  optimizers = list(dict.fromkeys(search.optimizer for search in found))
  together = len(optimizers) <= _TOGETHER
  panels = groups if together else optimizers
  layout = (
    theme.layout([words.named(g) for g in groups], 290)
    if together
    else theme.layout([words.name(o) for o in optimizers], 150, 200, 5)
  )
  data: list[dict[str, Any]] = []
  limits: dict[str, list[list[float]]] = {}
  # The vertical axes depend on the model where optimizers have panels.
  options = names if together else groups
  for option in options:
    limits[option] = []
    for panel, title in enumerate(panels, 1):
      shown = [
        s
        for s in found
        if (s.group == title if together else s.group == option)
      ]
      low, high = _range(shown)
      limits[option].append([low, high])
      for search in shown:
        if not together and search.optimizer != title:
          continue
        for name in [option] if together else names:
          when = {'hyperparameter': name}
          if not together:
            when['model'] = option
          if name in search.values:
            data += _trials(search, name, looks, panel, high, when)
  for panel in range(1, len(panels) + 1):
    layout[theme.axis('x', panel)] |= {
      'type': 'log',
      'title': theme.title(label(names[0])),
      **_ticks(found, names[0]),
    }
    layout[theme.axis('y', panel)]['title'] = theme.title('Loss of the proxy')
  switches = []
  options_of = {name: label(name) for name in names}
  switches.append(Switch('hyperparameter', 'Over', options_of))
  if not together:
    switches.append(
      Switch('model', 'Model', {g: words.named(g) for g in groups})
    )
  return Figure(
    'tuning',
    'Loss of the proxy over the hyperparameters that were searched',
    'Every trial, its loss at the end; lines where trials differ in nothing '
    'else. A ring marks what the final runs use. At the upper edge: × '
    'diverged, ▾ ended early, ▴ finished above what is shown.',
    {
      'data': data,
      'layout': layout,
      'limits': {
        'switch': 'hyperparameter' if together else 'model',
        'of': limits,
      },
      'xnames': {
        'switch': 'hyperparameter',
        'of': {
          name: {'title': {'text': label(name)}, **_ticks(found, name)}
          for name in names
        },
      },
      'csv': {'x': 'value', 'y': 'loss of the proxy (nats per token)'},
    },
    switches,
    theme.names(optimizers) if together else {},
  )


def _ticks(found: Sequence[Search], name: str) -> dict[str, Any]:
  """Returns labels at powers of ten, and at 3 times them over few of them."""
  x = [
    coordinate(name, value)
    for search in found
    if name in search.values
    for value in search.values[name]
  ]
  known = [value for value in x if value > 0] or [1.0]
  low, high = math.log10(min(known)), math.log10(max(known))
  steps = (1, 3) if high - low < 3 else (1,)
  if high - low < 1:
    steps = (1, 2, 3, 5)
  values = [
    theme.digits(step * 10.0**exponent)
    for exponent in range(math.floor(low), math.ceil(high) + 1)
    for step in steps
  ]
  return {'tickvals': values, 'ticktext': [words.rate(v) for v in values]}


def _range(found: Sequence[Search]) -> tuple[float, float]:
  """Returns the losses that a panel shows: the best half of every search."""
  low, high = math.inf, -math.inf
  for search in found:
    losses = search.trials['loss'].to_numpy(float)
    losses = losses[np.isfinite(losses)]
    low = min(low, float(losses.min()))
    high = max(high, float(np.quantile(losses, 0.75)))
  if not low <= high:
    return 0.0, 1.0
  room = 0.1 * (high - low) or 0.02 * abs(high) or 0.1
  return theme.digits(low - room), theme.digits(high + 2 * room)


def _trials(
  search: Search,
  name: str,
  looks: Mapping[str, Mapping[str, str]],
  panel: int,
  high: float,
  when: Mapping[str, str],
) -> list[dict[str, Any]]:
  """Returns marks of trials and of what was used, and a line of a curve."""
  look = looks[search.optimizer]
  shown = theme.text(words.name(search.optimizer))
  frame = pd.DataFrame(
    {
      'x': [coordinate(name, v) for v in search.values[name]],
      'loss': search.trials['loss'].to_numpy(float),
      'status': search.trials['status'].to_numpy(),
    }
  )
  frame = frame[frame['x'] > 0].sort_values('x')
  common: dict[str, Any] = {
    'type': 'scatter',
    'legendgroup': search.optimizer,
    'name': shown,
    **theme.panel(panel),
  }
  meta = {'optimizer': search.optimizer, 'when': dict(when)}
  traces = []
  top = theme.digits(high)
  for kind, symbol, held in (
    ('diverged', 'x', frame[frame['status'] == 'diverged']),
    ('ended early', 'triangle-down', frame[frame['status'] == 'pruned']),
    (
      'above what is shown',
      'triangle-up',
      frame[(frame['status'] == 'finished') & (frame['loss'] > high)],
    ),
  ):
    if len(held):
      traces.append(
        {
          **common,
          'mode': 'markers',
          'x': theme.rounded(held['x']),
          'y': [top] * len(held),
          'marker': {'symbol': symbol, 'size': 8, 'color': look['color']},
          # Not cut off by the panel's edge.
          'cliponaxis': False,
          'hovertemplate': f'{kind}, %{{x:.3~g}}<extra>{shown}</extra>',
          'meta': {**meta, 'kind': kind},
        }
      )
  done = frame[frame['status'] == 'finished']
  curve = len(search.values.columns) == 1
  if curve:
    means = done.groupby('x')['loss'].mean()
    traces.append(
      {
        **common,
        'mode': 'lines',
        'x': theme.rounded(means.index),
        'y': theme.rounded(means),
        'line': theme.line(look, 1.8),
        'hoverinfo': 'skip',
        'meta': {**meta, 'kind': 'mean'},
      }
    )
  traces.append(
    {
      **common,
      'mode': 'markers',
      'x': theme.rounded(done['x']),
      'y': theme.rounded(done['loss']),
      'marker': {
        'symbol': look['marker'],
        'size': 7 if curve else 6,
        'color': look['color'],
      },
      'opacity': 1.0 if curve else 0.8,
      'hovertemplate': f'%{{y:.4f}} at %{{x:.3~g}}<extra>{shown}</extra>',
      'meta': {**meta, 'kind': 'trial'},
    }
  )
  used = _used(search, name)
  if used is not None and len(done):
    near = done.loc[(np.log(done['x']) - math.log(used)).abs().idxmin()]
    best = done[np.isclose(done['x'], near['x'])]['loss'].min()
    traces.append(
      {
        **common,
        'mode': 'markers',
        'x': [theme.digits(used)],
        'y': [theme.digits(float(best))],
        'marker': {
          'symbol': 'circle-open',
          'size': 17,
          'color': look['color'],
          'line': {'width': 2},
        },
        'hoverinfo': 'skip',
        'meta': {**meta, 'kind': 'used'},
      }
    )
  return traces


def _used(search: Search, name: str) -> float | None:
  """Returns the coordinate of the final runs, or else of the best trial."""
  rows = search.finals.head(1).to_dict('records')
  held = tables.hyperparameters(rows[0]) if rows else {}
  if name not in held and search.best is not None:
    held = search.values.iloc[search.best].to_dict()
  value = coordinate(name, held[name]) if name in held else math.nan
  return value if value > 0 else None


# The table of searches.


def _table(found: Sequence[Search]) -> Table:
  trial_tokens = words.unit('tokens', (_tokens(s) for s in found))
  all_tokens = words.unit('tokens', (_spent(s) for s in found))
  rows: list[Sequence[Cell | str] | str] = []
  group = None
  for search in found:
    if search.group != group:
      rows.append(words.named(search.group))
      group = search.group
    rows.append(_row(search, trial_tokens, all_tokens))
  return Table(
    'Searches',
    [
      Column('Optimizer'),
      Column('Proxy', 'layers × width'),
      Column('Target', 'layers × width'),
      Column('Searched'),
      Column('Trials', number=True),
      Column('Tokens a trial', trial_tokens.label, True),
      Column('Tokens in all', all_tokens.label, True),
      Column('Best rate', number=True),
      Column('Used rate', number=True),
      Column('Place of the best', 'rates below and above'),
    ],
    rows,
    note='Trials that were ended early count with the tokens they took, '
    'diverged ones in full. Under µP the rate goes to the target as it '
    'stands; the parametrization carries it over the width.',
    style='wide',
  )


def _row(
  search: Search, trial_tokens: words.Unit, all_tokens: words.Unit
) -> list[Cell | str]:
  first = search.trials.iloc[0] if len(search.trials) else None
  remarks = [
    f'{search.count(status)} {text}'
    for status, text in (('diverged', 'diverged'), ('pruned', 'ended early'))
    if search.count(status)
  ]
  if search.under_way:
    remarks.append(f'{search.under_way} under way')
  best = None if search.best is None else search.trials.iloc[search.best]
  used = search.finals.iloc[0] if len(search.finals) else None
  place = words.MISSING
  edge = False
  if best is not None:
    rates = np.unique(search.trials['lr'].to_numpy(float))
    below = int((rates < best['lr'] * (1 - _CLOSE)).sum())
    above = int((rates > best['lr'] * (1 + _CLOSE)).sum())
    edge = not (below and above)
    place = 'at the edge' if edge else f'{below} and {above}'
  return [
    Cell(words.name(search.optimizer), optimizer=search.optimizer),
    words.MISSING if first is None else _shape(first),
    words.MISSING if used is None else _shape(used),
    words.join(words.name(n) for n in search.values.columns) or words.MISSING,
    Cell(str(len(search.trials)), ', '.join(remarks)),
    trial_tokens.number(_tokens(search)),
    all_tokens.number(_spent(search)),
    words.MISSING if best is None else words.rate(float(best['lr'])),
    words.MISSING if used is None else words.rate(float(used['lr'])),
    Cell(place, style='bad' if edge else ''),
  ]


def _shape(run: Mapping[str, Any]) -> str:
  layers, width = (
    tables.config(run, f'model.{key}') for key in ('num_layers', 'width')
  )
  return f'{layers:.0f} × {width:.0f}'


def _tokens(search: Search) -> float:
  planned = search.trials['planned_tokens']
  return float(planned.iloc[0]) if len(planned) else math.nan


def _spent(search: Search) -> float:
  pruned = search.trials['status'] == 'pruned'
  return float(
    search.trials['tokens'].where(pruned, search.trials['planned_tokens']).sum()
  )


# Sensitivity.


Points = list[tuple[float, float]]


def profile(search: Search, name: str) -> Points:
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
      'x': [coordinate(name, v) for v in search.values[name][kept]],
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


def _sensitivities(found: Sequence[Search]) -> list[Block]:
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
            label(name),
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
      folded=True,
    )
  ]


def _off(value: float | None, status: str) -> Cell:
  if value is None:
    style = 'bad' if status == 'diverged' else 'soft'
    return Cell(status, style=style)
  sign = '~ ' if status == 'interpolated' else ''
  return Cell(f'{sign}{value:.4f}', value=value)


# Importance.


def importances(search: Search) -> dict[str, float]:
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
    if (search.values[n].map(lambda v, n=n: coordinate(n, v)) > 0).all()
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
    x = values[name].map(lambda v, n=name: coordinate(n, v))
    ranges[name] = optuna.distributions.FloatDistribution(
      float(x.min()), float(x.max()), log=True
    )
  for (_, row), loss in zip(values.iterrows(), losses, strict=True):
    study.add_trial(
      optuna.trial.create_trial(
        params={n: float(coordinate(n, row[n])) for n in names},
        distributions=ranges,
        value=float(loss),
      )
    )
  evaluator = optuna.importance.PedAnovaImportanceEvaluator(
    target_quantile=0.25
  )
  found = optuna.importance.get_param_importances(study, evaluator=evaluator)
  return {str(name): float(share) for name, share in found.items()}


def _importances(found: Sequence[Search]) -> list[Block]:
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
      folded=True,
    )
  ]
