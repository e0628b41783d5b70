"""Benchmark scores during training, a line per run and the mean over seeds.

The page shows one task and metric at a time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from steepest.eval.comparing import accuracy, formatting
from steepest.eval.comparing.comparison import Comparison, Group
from steepest.eval.comparing.runs import Run
from steepest.eval.plots import course, theme

_METRICS = [name for name, lower in accuracy.METRICS.items() if not lower]


def list_columns(comparison: Comparison) -> list[tuple[str, str]]:
  """Returns the (task, metric) pairs that a run was scored on repeatedly."""
  found = set()
  for group in comparison.groups:
    for run in course.shown_runs(group):
      names = {name for row in run.rows for name in row}
      for name in names:
        prefix, _, rest = name.partition('/')
        task, _, metric = rest.rpartition('/')
        if prefix != 'eval' or not task or metric not in _METRICS:
          continue
        if len(run.series(name, 'tokens')[0]) > 1:
          found.add((task, metric))
  return accuracy.outermost(found)


def curve_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws accuracies during training, a panel per group of runs.

  Returns:
    Besides data and layout `titles` of the horizontal axes and `first`: the
    column that is shown first. None where no run was scored during training.
  """
  columns = list_columns(comparison)
  courses = course.Courses(comparison.groups)
  if not columns:
    return None
  layout = theme.layout([formatting.group_name(g) for g in courses.groups], 260)
  data: list[dict[str, Any]] = []
  for panel, group in enumerate(courses.groups, 1):
    runs = course.shown_runs(group)
    for column in columns:
      data += _chance(courses, group, column, panel)
      for optimizer in dict.fromkeys(run.optimizer for run in runs):
        own = [run for run in runs if run.optimizer == optimizer]
        data += _cell(courses, own, column, panel)
    layout[theme.axis('y', panel)]['title'] = theme.title('Accuracy (%)')
  return {
    'data': data,
    'layout': layout,
    'titles': courses.title(layout),
    'first': '/'.join(columns[0]),
    'csv': {'y': 'accuracy (%)'},
  }


def _cell(
  courses: course.Courses,
  runs: Sequence[Run],
  column: tuple[str, str],
  panel: int,
) -> list[dict[str, Any]]:
  """Returns a line per seed, thin where their mean is drawn too."""
  key = f'eval/{column[0]}/{column[1]}'
  when = {'column': '/'.join(column)}
  look = courses.look[runs[0].optimizer]
  logged = [(run, *course.values(run, key)) for run in runs]
  logged = [entry for entry in logged if entry[1]]
  thin = len(logged) > 1
  traces = [
    courses.trace(
      run,
      rows,
      100 * values,
      panel,
      when,
      mode='lines' if thin else 'lines+markers',
      line={
        'color': look['color'],
        'width': 1 if thin else 2,
        'dash': look['dash'],
      },
      marker={'symbol': look['marker'], 'size': 6},
      opacity=0.4 if thin else 1.0,
      hovertemplate=courses.hover('%{y:.1f} %'),
    )
    for run, rows, values in logged
  ]
  if thin:
    traces += _mean(courses, logged, panel, when)
  return traces


def _mean(
  courses: course.Courses,
  logged: Sequence[tuple[Run, list[dict[str, Any]], np.ndarray]],
  panel: int,
  when: dict[str, str],
) -> list[dict[str, Any]]:
  """Returns the mean over seeds where all have a value, at the first's time."""
  run, rows, _ = logged[0]
  look = courses.look[run.optimizer]
  steps = set.intersection(
    *({row['step'] for row in of} for _, of, _ in logged)
  )
  if not steps:
    return []
  means = np.mean(
    [
      [v for row, v in zip(of, values) if row['step'] in steps]
      for _, of, values in logged
    ],
    axis=0,
  )
  trace = courses.trace(
    run,
    [row for row in rows if row['step'] in steps],
    100 * means,
    panel,
    when,
    mode='lines+markers',
    line={'color': look['color'], 'width': 2.5, 'dash': look['dash']},
    marker={'symbol': look['marker'], 'size': 6},
    hovertemplate=courses.hover('%{y:.1f} %'),
  )
  name = theme.text(formatting.name(run.optimizer))
  trace['name'] = f'{name}, mean of {len(logged)}'
  trace['meta']['runs'] = [run.name for run, _, _ in logged]
  # It stays while single seeds are hidden.
  del trace['meta']['seed'], trace['meta']['run']
  return [trace]


def _chance(
  courses: course.Courses,
  group: Group,
  column: tuple[str, str],
  panel: int,
) -> list[dict[str, Any]]:
  """Returns a dotted line at the accuracy of guessing, where known."""
  key = '/'.join(column)
  known = [c.scores[key].chance for c in group.cells if key in c.scores]
  runs = [
    run
    for run in course.shown_runs(group)
    if course.values(run, f'eval/{key}')[0]
  ]
  if not known or known[0] is None or not runs:
    return []
  longest = max(runs, key=lambda run: run.rows[-1]['tokens'])
  rows = [longest.rows[0], longest.rows[-1]]
  line = {'color': theme.INK, 'width': 2, 'dash': 'dot'}
  trace = courses.trace(
    longest,
    rows,
    [100 * known[0]] * 2,
    panel,
    {'column': key},
    line=line,
    opacity=1.0,
    hovertemplate='chance %{y:.1f} %<extra></extra>',
  )
  trace |= {'name': 'chance', 'legendgroup': 'chance'}
  trace['meta'] = {'kind': 'chance', 'when': {'column': key}}
  return [trace]
