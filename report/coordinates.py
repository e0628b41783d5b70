"""The page of a coordinate check: measured quantities over a model's size."""

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
from typing import Any

import numpy as np
import pandas as pd

from steepest.report import page, theme
from steepest.report.section import Cell, Column, Figure, Section, Table

# Prefix of a quantity's name → title of its panel.
_PANELS = {
  'change/': 'Change of activations: mean |x after − x before|',
  'level/': 'Size of activations: mean |x|',
  'update/': 'Next update: mean |Δθ|',
  'curvature/': 'Curvature: mean over coordinates',
  'unclipped/': 'Share of coordinates that are not clipped',
}


def write(directory: pathlib.Path, title: str, subtitle: str) -> pathlib.Path:
  """Writes coordcheck.html beside the coordcheck.json that it shows.

  Args:
    directory: of both.
    title: of the page.
    subtitle: what was run.
  """
  checked = json.loads((directory / 'coordcheck.json').read_text('utf-8'))
  rows = [row for row in checked['rows'] if row['passed'] is not None]
  sections = [Section('verdicts', 'Slopes', [_table(rows)], folded=False)]
  for axis in dict.fromkeys(row['axis'] for row in rows):
    of_axis = [row for row in rows if row['axis'] == axis]
    figure = _figure(axis, of_axis)
    sections.append(Section(axis, f'Over {axis}', [figure], folded=False))
  env = checked['env']
  return page.write(
    directory / 'coordcheck.html',
    title=title,
    subtitle=subtitle,
    sections=sections,
    origin={'Commit': env['git_commit'], 'Device': env['device_kind']},
  )


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
  frame = pd.DataFrame(rows)
  failed = Cell('fails', style='bad')
  frame = frame.assign(
    quantity=frame['quantity'] + ' over ' + frame['axis'],
    verdict=['passes' if passed else failed for passed in frame['passed']],
    allowed=[
      f'at most {high:+.2f}' if pd.isna(low) else f'{low:+.2f} to {high:+.2f}'
      for low, high in zip(frame['low'], frame['high'], strict=True)
    ],
  )
  columns = {
    'quantity': Column('Quantity'),
    'verdict': Column('Verdict'),
    'slope': Column('Slope', number=True, form='+.2f'),
    'allowed': Column('Allowed', number=True),
    'reason': Column('Reason'),
  }
  return Table.of('Slopes', frame, columns, style='words')


def _figure(axis: str, rows: Sequence[Mapping[str, Any]]) -> Figure:
  """Draws log-log curves over one axis, one panel per kind of quantity."""
  panels = [
    prefix
    for prefix in _PANELS
    if any(row['quantity'].startswith(prefix) for row in rows)
  ]
  sizes = rows[0]['sizes']
  layout = theme.layout(
    [_PANELS[p] for p in panels],
    300,
    {
      'title': axis.capitalize(),
      'type': 'log',
      'tickvals': sizes,
      'ticktext': list(map(str, sizes)),
    },
    {'type': 'log'},
    narrowest=420,
  )
  looks = theme.styles(row['quantity'].partition('/')[2] for row in rows)
  data = []
  for number, prefix in enumerate(panels, 1):
    for row in rows:
      if not row['quantity'].startswith(prefix):
        continue
      values_NxS = np.array(
        [[v or math.nan for v in seeds] for seeds in row['values']], float
      )
      name = row['quantity'].removeprefix(prefix)
      verdict = '' if row['passed'] else ', fails'
      trace = theme.trace(
        name,
        number,
        row['sizes'],
        np.exp(np.log(values_NxS).mean(1)),
        prefix.rstrip('/'),
        looks[name],
        size=8,
        name=theme.text(f'{name} {row["slope"] or math.nan:+.2f}{verdict}'),
        mode='lines+markers',
        hovertemplate='%{y:.3g} at %{x}<extra>%{fullData.name}</extra>',
      )
      if not row['passed']:
        trace['marker']['symbol'] = 'x'
      data.append(trace)
  return Figure(
    f'over-{axis}',
    f'Measured quantities over {axis}',
    'Geometric means over seeds; point at a line for its name and slope. ✕: '
    'the slope is outside its allowed range.',
    {'data': data, 'layout': layout, 'csv': {'x': axis, 'y': 'value'}},
  )
