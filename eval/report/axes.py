"""The report's section of what the axes of a study change."""

from typing import Any

from steepest.eval.comparing import formatting, groups as groups_lib
from steepest.eval.comparing.comparison import Comparison
from steepest.eval.report import findings, page
from steepest.eval.report.numbers import difference_cells
from steepest.eval.report.page import escape, figure


def axes(comparison: Comparison, figures: dict[str, Any]) -> list[page.Section]:
  """Returns the section of what the axes of the study change."""
  table = _effects(comparison)
  if not table:
    return []
  parts = []
  if 'effects' in figures:
    parts.append(
      figure(
        'effects',
        'What another value of an axis changes',
        'Change of the final validation loss, seed by seed, with its 95 % '
        'interval; left of the line the change helps. Full: it counts after '
        'Holm’s correction for the optimizers of the panel.',
        findings.legend(comparison),
      )
    )
  parts.append(page.scroll(table, 'Effects of the axes'))
  crossed = _interactions(comparison)
  if crossed:
    parts += [
      '<h3>Does it change who is ahead?</h3>',
      page.scroll(crossed, 'Interactions'),
      '<p class="note">Order: kept or swapped where the difference between '
      'the two counts before and after; else not resolved.</p>',
    ]
  return [page.Section('axes', 'Axes of the study', parts)]


def _effects(comparison: Comparison) -> str:
  """Returns the table of what an axis changes for each optimizer."""
  rows: list[tuple[str, ...]] = []
  for i, found in enumerate(comparison.effects):
    own = ('effects', i)
    model = formatting.model_name(
      found.architecture, groups_lib.label(found.others)
    )
    head = f'{model}, {formatting.name(found.optimizer)}: {_step(found)}'
    if found.loss is None:
      rows.append((escape(head), '–', '–', '–', '–', escape(found.reason), '–'))
      continue
    loss = difference_cells(found.loss, 1, '+.4f', (*own, 'loss'))
    change = '–'
    if found.accuracy is not None:
      change = difference_cells(
        found.accuracy, 100, '+.1f', (*own, 'accuracy')
      )[0]
    rows.append((escape(head), *loss[:2], *loss[3:], change))
  if not rows:
    return ''
  heads = (
    'Change',
    '#Validation loss',
    '#95 % interval',
    '#p',
    '#p, corrected',
    'Rule',
    '#Mean accuracy<small>points</small>',
  )
  return page.table(heads, rows, 'effects')


def _interactions(comparison: Comparison) -> str:
  """Returns the table of whether an axis changes who is ahead."""
  rows = []
  for i, found in enumerate(comparison.interactions):
    own = ('interactions', i)
    model = formatting.model_name(
      found.architecture, groups_lib.label(found.others)
    )
    names = (formatting.name(found.first), formatting.name(found.second))
    change = difference_cells(found.change, 1, '+.4f', (*own, 'change'))
    sides = [
      difference_cells(getattr(found, side), 1, '+.4f', (*own, side))[0]
      for side in ('at_reference', 'at_value')
    ]
    rows.append(
      (
        escape(f'{model}, {" − ".join(names)}: {_step(found)}'),
        *sides,
        change[0],
        change[1],
        change[4],
        escape(found.order),
      )
    )
  if not rows:
    return ''
  heads = (
    'Optimizers',
    '#Difference before',
    '#Difference after',
    '#Change',
    '#95 % interval',
    '#p, corrected',
    'Order',
  )
  return page.table(heads, rows, 'interactions')


def _step(found: Any) -> str:
  """Returns such as 'epochs 1 → 4'."""
  axis = found.axis.replace('_', ' ')
  sides = map(formatting.axis_value, (found.reference, found.value))
  return f'{axis} {" → ".join(sides)}'
