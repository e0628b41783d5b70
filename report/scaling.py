"""Loss over model size and tokens, and what an optimizer saves at each size.

An optimizer's speed-up at a size is the tokens that the baseline needs there
for the same loss, over those used. It is read between the baseline's own
budgets of that size, whatever any formula says; beyond them, and beyond the
sizes, off

  L(N, D) = E + A / N^a + B / D^b

for each optimizer, with E in common, N all parameters: Hoffmann et al. (arXiv
2203.15556), approach 3, by Huber's loss on log L. The loss is summed over the
runs, since a mean ends the descent too early (arXiv 2404.10102). Every loss is
that of a run to its end.

Letters of shapes: P runs, U unknowns, R redrawn sets of runs, B budgets.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import interpolate, optimize

from steepest.report import section, statistics, tables, theme, words
from steepest.report.section import Column
from steepest.report.sizes import BASELINE
from steepest.report.statistics import Array

# Five unknowns of an optimizer, of which three are of the sizes.
FEWEST_SIZES = 3
FEWEST_POINTS = 6
# Of Huber's loss, in log L (arXiv 2203.15556).
_DELTA = 1e-3
_EXPONENTS = (0.02, 3.0)
# Where the descents start: E as a share of the lowest loss, and exponents.
_FLOORS = (0.3, 0.6, 0.9)
_STARTS = (0.25, 0.7)
# Sets of runs that are redrawn.
REDRAWN = 100
# The largest size that is drawn, over the largest measured.
_BEYOND = 10.0
# Of speed-ups.
_TICKS = [0.2, 0.3, 0.5, 0.7, 1, 1.2, 1.5, 2, 3, 5]


@dataclasses.dataclass(frozen=True)
class Law:
  """The fitted losses of some optimizers over sizes and tokens.

  Attributes:
    optimizers: in the order of the unknowns.
    unknowns_U: log E, then log A, a, log B, b of each optimizer, with A and B
      in units of the loss at `unit`.
    redrawn_RxU: the same, fitted to redrawn runs.
    unit: geometric means of parameters and tokens.
    freedom: runs minus unknowns.
  """

  optimizers: tuple[str, ...]
  unknowns_U: Array
  redrawn_RxU: Array
  unit: tuple[float, float]
  freedom: int

  def tokens_for(
    self, optimizer: str, parameters: float, loss: Any, redrawn: bool = False
  ) -> Array:
    """Returns D with L(N, D) = loss; NaN where no number of tokens does.

    Args:
      optimizer: whose law.
      parameters: N.
      loss: a number, or where `redrawn`, also one for each set.
      redrawn: whether to answer by each redrawn set (R) instead of the fit.
    """
    floor, scale, alpha, budget, beta = self._of(optimizer, redrawn)
    size = np.log(parameters / self.unit[0])
    left = loss - np.exp(floor) - np.exp(scale - alpha * size)
    with np.errstate(invalid='ignore', divide='ignore'):
      return self.unit[1] * np.exp((budget - np.log(left)) / beta)

  def loss(
    self, optimizer: str, parameters: Any, tokens: Any, redrawn: bool = False
  ) -> Array:
    """Returns L(N, D); see `tokens_for`."""
    floor, scale, alpha, budget, beta = self._of(optimizer, redrawn)
    size = np.log(parameters / self.unit[0])
    read = np.log(tokens / self.unit[1])
    return (
      np.exp(floor)
      + np.exp(scale - alpha * size)
      + np.exp(budget - beta * read)
    )

  def _of(self, optimizer: str, redrawn: bool) -> list[Array]:
    own = 1 + 4 * self.optimizers.index(optimizer)
    unknowns = self.redrawn_RxU if redrawn else self.unknowns_U
    return [unknowns[..., i] for i in (0, *range(own, own + 4))]


def why_not(points: pd.DataFrame) -> str:
  """Says why an optimizer's runs do not carry a law; '' where they do.

  Args:
    points: parameters, tokens and loss of each of its runs.
  """
  budgets = points.groupby('parameters')['tokens'].nunique()
  if len(budgets) < FEWEST_SIZES:
    return (
      f'A and a need {FEWEST_SIZES} sizes, there '
      f'{"is" if len(budgets) == 1 else "are"} {len(budgets)}'
    )
  if (budgets > 1).sum() < 2:
    return (
      'tokens change with the size alone, so that nothing tells their share '
      'of the loss from its own: two sizes need several budgets'
    )
  if budgets.sum() < FEWEST_POINTS:
    return f'five unknowns need {FEWEST_POINTS} points, not {budgets.sum()}'
  return ''


def fit(points: pd.DataFrame, seed: int = 0) -> Law:
  """Fits the law of all optimizers that the runs carry.

  Runs are redrawn by their residuals, scaled up for the unknowns: those of all
  seeds and points of an optimizer stand for each other's.

  Args:
    points: optimizer, parameters, tokens and loss of each run.
    seed: of what is redrawn.

  Raises:
    ValueError: no optimizer's runs carry one, or no exponent in range fits.
  """
  reasons = {str(name): why_not(of) for name, of in points.groupby('optimizer')}
  names = tuple(name for name, reason in reasons.items() if not reason)
  if not names:
    raise ValueError(
      '; '.join(
        f'{words.name(name)}: {reason}' for name, reason in reasons.items()
      )
    )
  points = points[points['optimizer'].isin(names)]
  whose_P = points['optimizer'].map(names.index).to_numpy()
  given = np.log(points[['parameters', 'tokens', 'loss']].to_numpy(float).T)
  unit = np.exp(given[:2].mean(axis=1))
  design = (whose_P, given[0] - np.log(unit[0]), given[1] - np.log(unit[1]))
  lowest = given[2].min()
  starts = [
    np.array(
      [
        lowest + math.log(floor),
        *[
          lowest + math.log((1 - floor) / 2),
          a,
          lowest + math.log((1 - floor) / 2),
          b,
        ]
        * len(names),
      ]
    )
    for floor in _FLOORS
    for a in _STARTS
    for b in _STARTS
  ]
  rough = [_descend(design, given[2], start, 'linear') for start in starts]
  best = min(rough, key=lambda found: found.cost)
  fitted = _descend(design, given[2], best.x, 'huber')
  exponents = fitted.x[1:].reshape(-1, 4)[:, 1::2]
  low, high = _EXPONENTS
  if exponents.min() < 1.01 * low or exponents.max() > 0.99 * high:
    raise ValueError(f'no exponents from {low:g} to {high:g} fit the losses')
  freedom = len(points) - len(fitted.x)
  rng = np.random.default_rng(seed)
  smooth_P = given[2] + _residuals(fitted.x, *design, given[2])
  noise_P = (given[2] - smooth_P) * math.sqrt(len(points) / max(freedom, 1))
  redrawn = []
  for _ in range(REDRAWN):
    drawn_P = smooth_P.copy()
    for own in range(len(names)):
      at = np.flatnonzero(whose_P == own)
      drawn_P[at] += rng.choice(noise_P[at], len(at))
    redrawn.append(_descend(design, drawn_P, fitted.x, 'huber').x)
  ends = float(unit[0]), float(unit[1])
  return Law(names, fitted.x, np.array(redrawn), ends, freedom)


def _terms(
  unknowns_U: Array, whose_P: Any, size_P: Array, read_P: Array
) -> Any:
  """Returns E, and what size and tokens add to it, for each run."""
  scale_P, alpha_P, budget_P, beta_P = unknowns_U[1:].reshape(-1, 4)[whose_P].T
  return (
    np.exp(unknowns_U[0]),
    np.exp(scale_P - alpha_P * size_P),
    np.exp(budget_P - beta_P * read_P),
  )


def _residuals(
  unknowns_U: Array,
  whose_P: Any,
  size_P: Array,
  read_P: Array,
  log_loss_P: Array,
) -> Array:
  floor, of_size_P, of_tokens_P = _terms(unknowns_U, whose_P, size_P, read_P)
  return np.log(floor + of_size_P + of_tokens_P) - log_loss_P


def _gradient(
  unknowns_U: Array,
  whose_P: Any,
  size_P: Array,
  read_P: Array,
  log_loss_P: Array,
) -> Array:
  floor, of_size_P, of_tokens_P = _terms(unknowns_U, whose_P, size_P, read_P)
  total_P = floor + of_size_P + of_tokens_P
  gradient_PxU = np.zeros((len(total_P), len(unknowns_U)))
  gradient_PxU[:, 0] = floor / total_P
  parts = (of_size_P, -of_size_P * size_P, of_tokens_P, -of_tokens_P * read_P)
  rows = np.arange(len(total_P))
  for i, part_P in enumerate(parts, 1):
    gradient_PxU[rows, 4 * whose_P + i] = part_P / total_P
  return gradient_PxU


def _descend(
  design: tuple[Any, Array, Array], log_loss_P: Array, start_U: Array, loss: str
) -> optimize.OptimizeResult:
  low, high = _EXPONENTS
  free, ends = [-np.inf, np.inf], [low, high]
  low_U, high_U = np.array(
    [free, *[free, ends, free, ends] * (len(start_U) // 4)]
  ).T
  return optimize.least_squares(
    _residuals,
    np.clip(start_U, low_U, high_U),
    _gradient,
    (low_U, high_U),
    loss=loss,
    f_scale=_DELTA,
    x_scale='jac',
    ftol=1e-7,
    xtol=1e-6,
    args=(*design, log_loss_P),
  )


def speedups(points: pd.DataFrame, law: Law | None) -> pd.DataFrame:
  """Reads every optimizer's runs off the baseline.

  The interval has the seeds of both optimizers as sources of variance, each the
  same at all points of an optimizer; beyond the baseline's budgets that of the
  redrawn law instead of the baseline's seeds.

  Args:
    points: optimizer, parameters, tokens and loss of each run.
    law: of the baseline; None: nothing is read beyond its budgets.

  Returns:
    One row an optimizer, size and budget: optimizer, parameters, tokens, loss
    (mean over seeds), n, speedup, low, high (95 %), extrapolated.
  """
  cells = points.groupby(['optimizer', 'parameters', 'tokens'])['loss']
  means = cells.agg(['mean', 'count']).reset_index()
  spread = {}
  for name, of in points.groupby('optimizer'):
    groups = of.groupby(['parameters', 'tokens'])['loss']
    freedom = len(of) - groups.ngroups
    squares = ((of['loss'] - groups.transform('mean')) ** 2).sum()
    spread[name] = (squares / freedom if freedom else math.nan, freedom)
  rows = []
  for row in means[means['optimizer'] != BASELINE].to_dict('records'):
    own = means[
      (means['optimizer'] == BASELINE)
      & (means['parameters'] == row['parameters'])
    ].sort_values('tokens')
    loss, size = row['mean'], row['parameters']
    variance, freedom = spread[row['optimizer']]
    variance /= row['count']
    read = _between(own, loss, spread[BASELINE]) if len(own) else None
    beyond = read is None and law is not None and BASELINE in law.optimizers
    if read is not None:
      log, slope, of_baseline = read
    elif beyond and law is not None:
      at = law.tokens_for(BASELINE, size, loss)
      log = float(np.log(at))
      nearby = law.tokens_for(BASELINE, size, loss + 1e-4)
      slope = float((np.log(nearby) - log) / 1e-4)
      redrawn = np.log(law.tokens_for(BASELINE, size, loss, redrawn=True))
      of_baseline = (float(np.var(redrawn)), law.freedom)
    else:
      log = slope = math.nan
      of_baseline = (math.nan, 1)
    sources = ((slope**2 * variance, freedom), of_baseline)
    found = statistics.Differences(
      np.asarray(log - math.log(row['tokens'])), sources, row['count']
    )
    ends = [
      float(e) if math.isfinite(e) else math.nan for e in found.interval()
    ]
    rows.append(
      {
        'optimizer': row['optimizer'],
        'parameters': size,
        'tokens': row['tokens'],
        'loss': loss,
        'n': row['count'],
        'speedup': float(np.exp(found.value)),
        'low': math.exp(min(ends[0], 700)),
        'high': math.exp(min(ends[1], 700)),
        'extrapolated': beyond,
      }
    )
  columns = ['optimizer', 'parameters', 'tokens', 'loss', 'n', 'speedup']
  return pd.DataFrame(rows, columns=[*columns, 'low', 'high', 'extrapolated'])


def tokens_between(own: pd.DataFrame, loss: float) -> float:
  """Returns the tokens that a loss takes by some budgets; NaN beyond them.

  Args:
    own: tokens and mean loss of each budget, tokens rising.
    loss: to read.
  """
  found = _read(own['tokens'].to_numpy(), own['loss'].to_numpy(), loss)
  return math.nan if found is None else math.exp(found[0])


def _between(
  own: pd.DataFrame, loss: float, spread: tuple[float, int]
) -> tuple[float, float, tuple[float, int]] | None:
  """Reads a loss between a size's budgets.

  Returns:
    log of the tokens, its slope over the loss, and the variance that the
    baseline's seeds give it with their degrees of freedom; None beyond them.
  """
  read = _read(own['tokens'].to_numpy(), own['mean'].to_numpy(), loss)
  if read is None:
    return None
  log, slope, weights_B = read
  variance = slope**2 * spread[0] * (weights_B**2 / own['count']).sum()
  return log, slope, (float(variance), spread[1])


def _read(
  tokens_B: Array, losses_B: Array, loss: float
) -> tuple[float, float, Array] | None:
  """Reads a loss by the parabola over log tokens through three budgets.

  Of two budgets by the straight line.

  Returns:
    log of the tokens, its slope over the loss, and what each budget's loss adds
    to the curve there; None where no two neighbours have the loss between them.
  """
  logs_B = np.log(tokens_B)
  for i in range(len(logs_B) - 1):
    if losses_B[i + 1] <= loss <= losses_B[i] > losses_B[i + 1]:
      break
  else:
    return None
  far_B = np.abs(logs_B - (logs_B[i] + logs_B[i + 1]) / 2)
  near = np.sort(np.argsort(far_B, kind='stable')[:3])
  curve = interpolate.BarycentricInterpolator(logs_B[near], losses_B[near])
  ends = logs_B[i], logs_B[i + 1]
  log = float(optimize.brentq(lambda x: float(curve(x)) - loss, *ends))
  basis = interpolate.BarycentricInterpolator(logs_B[near], np.eye(len(near)))
  weights_B = np.zeros(len(logs_B))
  weights_B[near] = basis(log)
  return log, 1 / float(curve.derivative(log)), weights_B


def trend(
  law: Law, optimizer: str, ratio: float, sizes_N: Array
) -> pd.DataFrame:
  """Returns the speed-up of an optimizer's law over the baseline's by size.

  Args:
    law: that both are in.
    optimizer: which is compared.
    ratio: its tokens for each parameter.
    sizes_N: numbers of parameters.

  Returns:
    parameters, speedup, low, high (95 %, of the redrawn laws); NaN where the
    baseline would need no finite number of tokens.
  """
  rows = []
  for size in sizes_N:
    tokens = ratio * size
    logs = []
    for redrawn in (False, True):
      loss = law.loss(optimizer, size, tokens, redrawn)
      at = law.tokens_for(BASELINE, size, loss, redrawn)
      logs.append(np.log(at / tokens))
    value, redrawn_R = logs
    reach = float(np.std(redrawn_R) * statistics.quantile(0.05, law.freedom))
    low, high = np.exp([value - reach, value + reach])
    rows.append((size, float(np.exp(value)), float(low), float(high)))
  return pd.DataFrame(rows, columns=['parameters', 'speedup', 'low', 'high'])


def models(comparison: tables.Comparison) -> dict[str, pd.DataFrame]:
  """Returns the runs of each model that has several sizes, as `fit` takes them.

  By model and the axes but width, depth and tokens.
  """
  found = {}
  columns = ['optimizer', 'parameters', 'planned_tokens', 'eval_loss']
  names = ['optimizer', 'parameters', 'tokens', 'loss']
  for model, runs in tables.by_model(comparison, ('width', 'depth', 'tokens')):
    several = runs['parameters'].nunique() > 1
    if several and BASELINE in set(runs['optimizer']):
      found[model] = runs[columns].set_axis(names, axis=1)
  return found


def sections(comparison: tables.Comparison) -> list[section.Section]:
  """Returns the section of speed-ups over sizes."""
  found = models(comparison)
  if not found:
    return []
  looks = theme.styles(comparison.tables.runs['optimizer'])
  laws: dict[str, Law] = {}
  notes: list[section.Block] = []
  parts = []
  for model, points in found.items():
    try:
      laws[model] = fit(points)
    except ValueError as error:
      notes.append(section.Note(f'{words.named(model)}: no law. {error}.'))
    law = laws[model] if model in laws else None
    parts.append(speedups(points, law).assign(model=model))
  rows = pd.concat(parts)
  blocks: list[section.Block] = []
  if rows['speedup'].notna().any():
    blocks.append(_figure(rows, laws, looks))
  blocks += [_table(rows), *_law_table(laws), *notes]
  title = 'Does the advantage last as models grow?'
  return [section.Section('scaling', title, blocks)]


def _figure(
  rows: pd.DataFrame,
  laws: Mapping[str, Law],
  looks: Mapping[str, Mapping[str, str]],
) -> section.Figure:
  by_model = dict(list(rows.groupby('model', sort=False)))
  layout = theme.layout(
    [words.named(str(model)) for model in by_model],
    280,
    {'title': 'Parameters', **_size_ticks(rows['parameters'])},
    {
      'title': f'Speed-up over {words.name(BASELINE)} (×)',
      'type': 'log',
      'tickvals': _TICKS,
      'ticktext': [f'{tick:g}' for tick in _TICKS],
    },
  )
  data: list[dict[str, Any]] = []
  for panel, (model, of) in enumerate(by_model.items(), 1):
    ends = [of['parameters'].min(), of['parameters'].max()]
    data.append(
      theme.trace(
        BASELINE,
        panel,
        ends,
        [1.0, 1.0],
        'as fast',
        looks[BASELINE],
        mode='lines',
        hoverinfo='skip',
      )
    )
    for name, own in of.groupby('optimizer'):
      if model in laws and {name, BASELINE} <= set(laws[model].optimizers):
        data += _lines(laws[model], str(name), own, panel, looks[str(name)])
      for beyond, part in own.groupby('extrapolated'):
        look = looks[str(name)]
        data.append(
          theme.trace(
            str(name),
            panel,
            part['parameters'],
            part['speedup'],
            'beyond the budgets' if beyond else 'measured',
            look,
            # Plotly's bars of unequal length.
            error_y={
              'type': 'data',
              'array': theme.rounded(part['high'] - part['speedup']),
              'arrayminus': theme.rounded(part['speedup'] - part['low']),
              'thickness': 1.3,
              'width': 3,
              'color': look['color'],
            },
            marker={
              'symbol': look['marker'] + ('-open' if beyond else ''),
              'size': 8,
              'color': look['color'],
            },
            hovertemplate='%{y:.3f} ×<extra>%{fullData.name}</extra>',
          )
        )
  return section.Figure(
    'scaling',
    'Speed-up over model size',
    f'Tokens that {words.name(BASELINE)} needs for the same loss, over those '
    'used, with 95 % intervals: above 1 the optimizer is faster. Full marks '
    f'are read between {words.name(BASELINE)}’s own budgets of that size; '
    'open ones, and lines, off the fitted law; dotted parts lie beyond all '
    'sizes that were trained.',
    {
      'data': data,
      'layout': layout,
      'csv': {
        'x': 'parameters',
        'y': 'speed-up',
        'error_y': 'to the upper end',
      },
    },
    optimizers=theme.names([*rows['optimizer'], BASELINE]),
  )


def _lines(
  law: Law, name: str, own: pd.DataFrame, panel: int, look: Mapping[str, str]
) -> list[dict[str, Any]]:
  """Returns the trend of a law with its band, dotted where extrapolated."""
  ratio = float((own['tokens'] / own['parameters']).median())
  low, high = own['parameters'].min(), own['parameters'].max()
  inside = trend(law, name, ratio, np.geomspace(low, high, 30))
  outside = trend(law, name, ratio, np.geomspace(high, _BEYOND * high, 20))
  drawn = []
  for part, kind, dash in (
    (inside, 'law', 'solid'),
    (outside, 'law, extrapolated', 'dot'),
  ):
    band = pd.concat([part['high'], part['low'][::-1]])
    around = pd.concat([part['parameters'], part['parameters'][::-1]])
    drawn.append(
      theme.trace(
        name,
        panel,
        around,
        band,
        f'{kind}, band',
        look,
        mode='lines',
        line={'width': 0},
        fill='toself',
        fillcolor=theme.pale(look['color'], 0.12),
        hoverinfo='skip',
      )
    )
    drawn.append(
      theme.trace(
        name,
        panel,
        part['parameters'],
        part['speedup'],
        kind,
        look,
        mode='lines',
        line={'color': look['color'], 'width': 2, 'dash': dash},
        hovertemplate='%{y:.3f} ×<extra>%{fullData.name}</extra>',
      )
    )
  return drawn


def _size_ticks(sizes_N: Sequence[float]) -> dict[str, Any]:
  ticks = theme.log_ticks(sizes_N)
  return ticks | {'ticktext': [words.count(v) for v in ticks['tickvals']]}


def _table(rows: pd.DataFrame) -> section.Table:
  far = f'off the law: not between {words.name(BASELINE)}’s budgets'
  none = f'not between {words.name(BASELINE)}’s budgets of this size'
  rows = rows.assign(
    size=rows['parameters'].map(words.count),
    budget=rows['tokens'].map(words.count),
    interval=[
      words.interval(*pair, '.2f')
      for pair in zip(rows['low'], rows['high'], strict=True)
    ],
    remark=[
      far if beyond else none if math.isnan(value) else ''
      for beyond, value in zip(
        rows['extrapolated'], rows['speedup'], strict=True
      )
    ],
  )
  return section.Table.of(
    'Speed-ups by size',
    rows,
    {
      'optimizer': Column('Optimizer'),
      'size': Column('Parameters', number=True),
      'budget': Column('Tokens', number=True),
      'loss': Column('Validation loss', number=True, form='.4f'),
      'n': Column('Seeds', number=True),
      'speedup': Column('Speed-up', '×', True, form='.2f'),
      'interval': Column('95 % interval', number=True),
      'remark': Column('Remark'),
    },
    heading='model',
    folded=True,
  )


def _law_table(laws: Mapping[str, Law]) -> list[section.Block]:
  rows = []
  for model, law in laws.items():
    for name in law.optimizers:
      floor, scale, alpha, budget, beta = law._of(name, False)
      redrawn = law._of(name, True)
      half = statistics.quantile(0.05, law.freedom)
      rows.append(
        {
          'model': model,
          'optimizer': name,
          'floor': float(np.exp(floor)),
          'of_size': float(np.exp(scale)),
          'alpha': f'{alpha:.3f} ± {float(np.std(redrawn[2]) * half):.3f}',
          'of_tokens': float(np.exp(budget)),
          'beta': f'{beta:.3f} ± {float(np.std(redrawn[4]) * half):.3f}',
          'at': ', '.join(map(words.count, law.unit)),
        }
      )
  if not rows:
    return []
  return [
    section.Table.of(
      'The fitted laws',
      pd.DataFrame(rows),
      {
        'optimizer': Column('Optimizer'),
        'floor': Column('E', 'nats', True, form='.3f'),
        'of_size': Column('A / N^a', 'nats', True, form='.3f'),
        'alpha': Column('a', number=True),
        'of_tokens': Column('B / D^b', 'nats', True, form='.3f'),
        'beta': Column('b', number=True),
        'at': Column('At N, D', number=True),
      },
      heading='model',
      note='L(N, D) = E + A / N^a + B / D^b (arXiv 2203.15556), with what size '
      'and tokens add at the geometric mean of the runs; ± is half of a 95 % '
      'interval.',
      folded=True,
    )
  ]
