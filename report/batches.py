"""Critical batch size: the batch above which an optimizer wastes tokens.

Reaching a loss with batches of B tokens takes D = D_min · (1 + B / B_crit)
tokens (McCandlish et al., arXiv 1812.06162, eq. 2.11 with D = B · S; fitted so
in arXiv 2505.13738): twice D_min at B_crit. D is interpolated between the token
budgets of each batch size, so a study needs both axes in full:
study.axis_batch_size and study.axis_tokens with study.axes_mode=product.
"""

from collections.abc import Iterator
import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from steepest.report import section, speedups, statistics, tables, words
from steepest.report.section import Column

# Two unknowns; the third batch size can contradict them.
FEWEST = 3


def sections(comparison: tables.Comparison) -> list[section.Section]:
  """Returns the section of critical batch sizes."""
  rows = []
  for model, points in _models(comparison):
    for optimizer, own in points.groupby('optimizer'):
      row: dict[str, Any] = {'model': model, 'optimizer': str(optimizer)}
      try:
        row |= critical(own)
      except ValueError as error:
        row['remark'] = str(error)
      rows.append(row)
  if not rows:
    return []
  columns = ['model', 'optimizer', 'loss', 'fewest', 'batch', 'low', 'high']
  found = pd.DataFrame(rows, columns=[*columns, 'remark']).fillna(
    {'remark': ''}
  )
  ends = zip(found['low'], found['high'], strict=True)
  found = found.assign(
    fewest=_counts(found['fewest']),
    interval=[
      ' to '.join(_counts(pair)) if np.isfinite(pair).all() else ''
      for pair in ends
    ],
    batch=_counts(found['batch']),
  )
  table = section.Table.of(
    'Critical batch sizes',
    found,
    {
      'optimizer': Column('Optimizer'),
      'loss': Column('At the loss', 'nats', True, form='.3f'),
      'fewest': Column('Fewest tokens', number=True),
      'batch': Column('Critical batch', 'tokens', True),
      'interval': Column('95 % interval', number=True),
      'remark': Column('Remark'),
    },
    heading='model',
    note='The loss is the lowest that every batch size reaches. The tokens to '
    'reach it with batches of B tokens are fitted by D = D_min · (1 + B / '
    'B_crit) (arXiv 2505.13738); the interval is the fit’s.',
  )
  title = 'From which batch size on are tokens wasted?'
  return [section.Section('batches', title, [table])]


def critical(points: pd.DataFrame) -> dict[str, float]:
  """Fits the tokens needed to reach a loss over batch sizes.

  Args:
    points: batch (tokens), tokens and loss of each run of one optimizer.

  Returns:
    loss, fewest (D_min), batch (B_crit), low, high (95 %).

  Raises:
    ValueError: fewer than FEWEST batch sizes reach a common loss between their
      budgets, or tokens do not grow with the batch.
  """
  means = points.groupby(['batch', 'tokens'])['loss'].mean().reset_index()
  budgets = [of for _, of in means.groupby('batch') if len(of) > 1]
  if len(budgets) < FEWEST:
    raise ValueError(
      f'needs {FEWEST} batch sizes with several token budgets, there '
      f'{"is" if len(budgets) == 1 else "are"} {len(budgets)}'
    )
  loss = max(of['loss'].min() for of in budgets)
  if loss > min(of['loss'].max() for of in budgets):
    raise ValueError('no loss lies between the budgets of every batch size')
  batch_B = np.array([of['batch'].iloc[0] for of in budgets], float)
  tokens_B = np.array([speedups.tokens_between(of, loss) for of in budgets])
  if np.isnan(tokens_B).any():
    raise ValueError('losses do not fall with the tokens')
  unit = float(np.exp(np.log(batch_B).mean()))

  def curve(batch_B: Any, fewest: float, log_batch: float) -> Any:
    return fewest + np.log1p(batch_B / unit * np.exp(-log_batch))

  (fewest, log_batch), covariance_2x2 = optimize.curve_fit(
    curve, batch_B, np.log(tokens_B), (np.log(tokens_B.min()), 1.0)
  )
  if not abs(log_batch) < math.log(100 * batch_B.max() / batch_B.min()):
    raise ValueError('tokens do not grow with the batch as the law says')
  freedom = len(batch_B) - 2
  reach = math.sqrt(covariance_2x2[1, 1]) * float(
    statistics.quantile(statistics.LEVEL, freedom)
  )
  at = unit * np.exp(
    np.clip(log_batch + np.array([0, -reach, reach]), -9e2, 700)
  )
  return {
    'loss': float(loss),
    'fewest': float(np.exp(fewest)),
    **dict(zip(('batch', 'low', 'high'), map(float, at), strict=True)),
  }


def _models(
  comparison: tables.Comparison,
) -> Iterator[tuple[str, pd.DataFrame]]:
  """Yields models with several batch sizes and budgets, and their runs."""
  axes = {axis.name for axis in comparison.tables.axes}
  if not {'batch_size', 'tokens'} <= axes:
    return
  for model, runs in tables.by_model(comparison, ('batch_size', 'tokens')):
    yield (
      model,
      pd.DataFrame(
        {
          'optimizer': runs['optimizer'],
          'batch': runs['config.batch_size'] * runs['config.model.context'],
          'tokens': runs['planned_tokens'],
          'loss': runs['eval_loss'],
        }
      ),
    )


def _counts(values: Any) -> list[str]:
  return [words.count(v) if np.isfinite(v) else words.MISSING for v in values]
