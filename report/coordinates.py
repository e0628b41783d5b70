"""The page of a coordinate check: measured quantities over a model's size."""

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
from typing import Any

import numpy as np

from steepest.report import page, theme
from steepest.report.section import Cell, Column, Figure, Section, Table

# Start of a quantity's name → title of its panel.
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
  return Table(
    'Slopes',
    [
      Column('Quantity'),
      Column('Verdict'),
      Column('Slope', number=True),
      Column('Allowed', number=True),
      Column('Reason'),
    ],
    [
      [
        f'{row["quantity"]} over {row["axis"]}',
        Cell('passes') if row['passed'] else Cell('fails', style='bad'),
        '–' if row['slope'] is None else f'{row["slope"]:+.2f}',
        _band(row['low'], row['high']),
        row['reason'],
      ]
      for row in rows
    ],
    style='words',
  )


def _band(low: float | None, high: float) -> str:
  if low is None:
    return f'at most {high:+.2f}'
  return f'{low:+.2f} to {high:+.2f}'


def _figure(axis: str, rows: Sequence[Mapping[str, Any]]) -> Figure:
  """Draws log-log curves over one axis, a panel a kind of quantity."""
  panels = [
    prefix
    for prefix in _PANELS
    if any(row['quantity'].startswith(prefix) for row in rows)
  ]
  layout = theme.layout([_PANELS[p] for p in panels], 300, narrowest=420)
  looks = theme.styles(row['quantity'].partition('/')[2] for row in rows)
  data = []
  for number, prefix in enumerate(panels, 1):
    shown = [row for row in rows if row['quantity'].startswith(prefix)]
    for row in shown:
      values_NxS = np.array(
        [[v or math.nan for v in seeds] for seeds in row['values']], float
      )
      means_N = np.exp(np.log(values_NxS).mean(1))
      name = row['quantity'].removeprefix(prefix)
      look = looks[name]
      verdict = '' if row['passed'] else ', fails'
      data.append(
        {
          'type': 'scatter',
          'mode': 'lines+markers',
          'name': theme.text(
            f'{name} {row["slope"] or math.nan:+.2f}{verdict}'
          ),
          'x': row['sizes'],
          'y': theme.rounded(means_N),
          'line': theme.line(look),
          'marker': {
            'symbol': look['marker'] if row['passed'] else 'x',
            'size': 8,
          },
          'hovertemplate': '%{y:.3g} at %{x}<extra>%{fullData.name}</extra>',
          'meta': {'kind': prefix.rstrip('/')},
          **theme.panel(number),
        }
      )
    layout[theme.axis('x', number)] |= {
      'type': 'log',
      'title': theme.title(axis.capitalize()),
      'tickvals': shown[0]['sizes'],
      'ticktext': [str(size) for size in shown[0]['sizes']],
    }
    layout[theme.axis('y', number)]['type'] = 'log'
  return Figure(
    f'over-{axis}',
    f'Measured quantities over {axis}',
    'Geometric means over seeds; point at a line for its name and slope. ✕: '
    'the slope is not allowed.',
    {'data': data, 'layout': layout, 'csv': {'x': axis, 'y': 'value'}},
  )
