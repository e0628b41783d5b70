"""Benchmark scores at the end of training, beside chance and the loss."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from steepest.report import tables, theme, verdicts, words
from steepest.report.section import (
  Block,
  Cell,
  Column,
  Figure,
  Fold,
  Note,
  Section,
  Table,
)

# Of a benchmark's row, the share in which the optimizers' marks lie.
_SPREAD = 0.7
_ALPHA = 0.05
# Cells up to which all orders are counted; beyond, as many random ones.
_EXACT, _RESAMPLES = 7, 9999


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Rank correlation of final loss and benchmark score over optimizers.

  Attributes:
    column: 'task/metric', or 'accuracy' for the mean over benchmarks.
    tau: Kendall's tau-b of (−loss, score): 1 where a lower loss always comes
      with a better score; NaN where all have the same of one.
    p: two-sided, by permutation of the scores: all of them for up to seven
      optimizers, else 9,999 drawn with a fixed seed.
    n: optimizers.
    reason: why nothing can be told; '' where p is to be read.
  """

  column: str
  tau: float
  p: float
  n: int
  reason: str


def columns(cells: pd.DataFrame) -> list[str]:
  """Returns the benchmarks' columns of a comparison, in their order."""
  return ordered(column for column in set(cells['column']) if '/' in column)


def ordered(found: Iterable[str]) -> list[str]:
  """Returns 'task/metric' of the outermost tasks, in eval/tasks.py's order."""
  pairs = [column.rpartition('/')[::2] for column in found]
  frame = pd.DataFrame(pairs, columns=['task', 'metric'])
  return ['/'.join(pair) for pair in verdicts.outermost(frame)]


def chances(scores: pd.DataFrame) -> dict[str, float]:
  """Returns column → accuracy of guessing, where it is known."""
  known = scores.dropna(subset=['chance'])
  keys = known['task'] + '/' + known['metric']
  return dict(zip(keys, known['chance'].astype(float), strict=True))


def sections(comparison: tables.Comparison) -> list[Section]:
  """Returns the section of scores at the end of training."""
  names = columns(comparison.cells)
  if not names:
    return []
  held = comparison.cells[comparison.cells['column'].isin(names)]
  accuracies = [name for name in names if not name.endswith('/perplexity')]
  blocks: list[Block] = [_questions(comparison.tables.scores, names)]
  if accuracies:
    blocks.append(_figure(comparison, held, accuracies))
  blocks.append(_table(comparison, held, names))
  blocks += _agreements(comparison, names)
  return [Section('scores', 'Benchmarks', blocks)]


def _questions(scores: pd.DataFrame, names: Sequence[str]) -> str:
  """Says how many questions were scored, in words."""
  counts: dict[str, set[int]] = {}
  limits: set[int] = set()
  for task, metric, n, limit in zip(
    scores['task'], scores['metric'], scores['n'], scores['limit'], strict=True
  ):
    if f'{task}/{metric}' in names:
      counts.setdefault(words.name(task), set()).add(int(n))
      if limit and not math.isnan(float(limit)):
        limits.add(int(limit))
  listed = words.join(
    f'{task} {words.join((f"{n:,}" for n in sorted(of)), "or")}'
    for task, of in counts.items()
  )
  text = f'Questions scored: {listed}.'
  if limits:
    most = words.join((f'{n:,}' for n in sorted(limits)), 'or')
    return (
      f'{text} Limited to {most} questions a task: these are not the scores of '
      'the whole benchmarks.'
    )
  return text


def _figure(
  comparison: tables.Comparison, held: pd.DataFrame, names: Sequence[str]
) -> Figure:
  """Draws accuracies with standard errors and chance, a panel a group.

  A row is a benchmark; the optimizers' marks lie below one another in it.
  """
  groups = [g for g in comparison.groups if g in set(held['group'])]
  optimizers = sorted(set(held['optimizer']))
  looks = theme.styles(comparison.tables.runs['optimizer'])
  row = max(34, 14 + 9 * len(optimizers))
  layout = theme.layout(
    [words.named(g) for g in groups], row * len(names), columns=2
  )
  layout['margin']['l'] = 110
  chance = chances(comparison.tables.scores)
  data: list[dict[str, Any]] = []
  for panel, group in enumerate(groups, 1):
    of_group = held[held['group'] == group]
    for optimizer, frame in of_group.groupby('optimizer'):
      frame = frame.set_index('column')
      shown = [name for name in names if name in frame.index]
      offset = (optimizers.index(str(optimizer)) + 0.5) / len(optimizers) - 0.5
      look = looks[str(optimizer)]
      data.append(
        theme.trace(
          str(optimizer),
          panel,
          100 * frame['mean'][shown],
          [names.index(name) + _SPREAD * offset for name in shown],
          {'kind': 'score', 'labels': shown},
          error_x=theme.error(100 * frame['stderr'][shown], look['color']),
          marker=theme.marker(look, 8),
          text=[theme.text(words.head(name)) for name in shown],
          hovertemplate='%{text}<br>%{x:.1f} ± %{error_x.array:.1f} %'
          '<extra>%{fullData.name}</extra>',
        )
      )
    data.append(
      _chance({i: chance[n] for i, n in enumerate(names) if n in chance}, panel)
    )
    layout[theme.axis('y', panel)] |= {
      'tickvals': list(range(len(names))),
      'ticktext': ['<br>'.join(_lines(name)) for name in names],
      'showgrid': False,
      'range': [len(names) - 0.5, -0.5],
      'fixedrange': True,
    }
    layout[theme.axis('x', panel)]['title'] = theme.title('Accuracy (%)')
  return Figure(
    'scores',
    'Benchmark accuracies with standard errors',
    'Mean over seeds, zero-shot unless the name says otherwise; whiskers are '
    'one standard error either way, dotted lines the accuracy of guessing.',
    {
      'data': data,
      'layout': layout,
      'csv': {'x': 'accuracy (%)', 'error_x': 'standard error (points)'},
    },
    optimizers=theme.names(optimizers),
  )


def _lines(column: str) -> tuple[str, str]:
  task, _, metric = column.rpartition('/')
  return theme.text(words.name(task)), theme.text(metric)


def _chance(places: Mapping[int, float], panel: int) -> dict[str, Any]:
  xs: list[float | None] = []
  ys: list[float | None] = []
  for place, value in sorted(places.items()):
    xs += [100 * value, 100 * value, None]
    ys += [place - 0.44, place + 0.44, None]
  return {
    'type': 'scatter',
    'mode': 'lines',
    'name': 'chance',
    'legendgroup': 'chance',
    'x': xs,
    'y': ys,
    'connectgaps': False,
    'line': {'color': theme.INK, 'width': 2, 'dash': 'dot'},
    'hovertemplate': 'chance %{x:.1f} %<extra></extra>',
    'meta': {'kind': 'chance'},
    **theme.panel(panel),
  }


def _table(
  comparison: tables.Comparison, held: pd.DataFrame, names: Sequence[str]
) -> Table:
  """Returns mean ± standard error, a row an optimizer."""
  rows: list[Sequence[Cell | str] | str] = []
  for group in comparison.groups:
    of_group = held[held['group'] == group]
    if not len(of_group):
      continue
    rows.append(words.named(group))
    for optimizer, frame in of_group.groupby('optimizer'):
      by_column = frame.set_index('column')
      row: list[Cell | str] = [
        Cell(words.name(str(optimizer)), optimizer=str(optimizer))
      ]
      for name in names:
        if name not in by_column.index:
          row.append(words.MISSING)
          continue
        unit = words.unit(name)
        mean = float(by_column['mean'][name])
        won = comparison.winner(group, name) == optimizer
        row.append(
          Cell(
            unit.number(mean),
            f'± {unit.number(float(by_column["stderr"][name]))}',
            mean,
            style='best' if won else '',
          )
        )
      rows.append(row)
  return Table(
    'Scores of every optimizer',
    [
      Column('Optimizer'),
      *(
        Column(
          words.name(name.rpartition('/')[0]),
          f'{name.rpartition("/")[2]}'
          + (', %' if words.unit(name).label == '%' else ''),
          True,
        )
        for name in names
      ),
    ],
    rows,
    note='Mean over seeds ± standard error; seeds share their questions. ● is '
    'better than every other optimizer of its group after correction for their '
    'number.',
    style='wide',
  )


def agreement(
  column: str, losses: Sequence[float], scores: Sequence[float]
) -> Agreement:
  """Correlates the ranks of losses and scores, of which a higher is better."""
  n = len(losses)
  if n < 2 or len(set(losses)) < 2 or len(set(scores)) < 2:
    return Agreement(column, math.nan, math.nan, n, 'all have the same')
  good_N, score_N = -np.asarray(losses), np.asarray(scores)
  tau = float(stats.kendalltau(good_N, score_N).statistic)
  if 2 / math.factorial(n) > _ALPHA:
    reason = f'{n} optimizers are too few to tell'
    return Agreement(column, tau, math.nan, n, reason)
  sign_NxN = np.sign(good_N[:, None] - good_N)

  def concordance(x_PxN: np.ndarray, axis: int) -> np.ndarray:
    """Returns τ but for its denominator, which all orders share."""
    del axis  # The last one.
    signs_PxNxN = np.sign(x_PxN[..., :, None] - x_PxN[..., None, :])
    return (sign_NxN * signs_PxNxN).sum((-2, -1))

  found = stats.permutation_test(
    (score_N,),
    concordance,
    permutation_type='pairings',
    vectorized=True,
    n_resamples=math.factorial(n) if n <= _EXACT else _RESAMPLES,
    rng=np.random.default_rng(0),
  )
  return Agreement(column, tau, float(found.pvalue), n, '')


def _agreements(
  comparison: tables.Comparison, names: Sequence[str]
) -> list[Block]:
  """Returns the table of whether a lower loss comes with better scores."""
  rows: list[Sequence[Cell | str] | str] = []
  for group in comparison.groups:
    of_group = comparison.cells[comparison.cells['group'] == group]
    means = of_group.pivot(index='optimizer', columns='column', values='mean')
    if 'eval_loss' not in means:
      continue
    lines: list[Sequence[Cell | str]] = []
    for name in [*names, 'accuracy']:
      if name not in means or name.endswith('/perplexity'):
        continue
      both = means[['eval_loss', name]].dropna()
      if len(both) < 3:
        continue
      found = agreement(name, list(both['eval_loss']), list(both[name]))
      tau = '–' if math.isnan(found.tau) else f'{found.tau:+.2f}'
      lines.append(
        [
          words.head(name),
          Cell(tau.replace('-', '−')),
          words.p_value(found.p),
          str(found.n),
          found.reason,
        ]
      )
    if lines:
      rows += [words.named(group), *lines]
  if not rows:
    return []
  table = Table(
    'Rank correlation of loss and scores',
    [
      Column('Score'),
      Column('Kendall’s τ', number=True),
      Column('p', number=True),
      Column('Optimizers', number=True),
      Column('Remark'),
    ],
    rows,
  )
  note = Note(
    'τ is 1 where a lower validation loss always comes with a better score and '
    '−1 where it never does, over the optimizers’ means; p by permutation.'
  )
  title = 'Does a lower loss come with better scores?'
  return [Fold(title, [table, note])]
