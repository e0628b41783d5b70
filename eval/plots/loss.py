"""Loss against tokens, FLOPs and time, a line per run."""

from typing import Any

import numpy as np

from steepest.eval.comparing import formatting, tuning
from steepest.eval.comparing.comparison import Comparison
from steepest.eval.comparing.runs import Run
from steepest.eval.plots import course, theme

# Share of a run that the running mean of the training loss spans.
SMOOTHING = 0.05


def loss_figure(comparison: Comparison) -> dict[str, Any] | None:
  """Draws training and validation loss, a panel per group of runs.

  Returns:
    Besides data and layout `titles`: of the horizontal axes. None where there
    is nothing to draw.
  """
  courses = course.Courses(comparison.groups)
  if not courses.groups or not courses.axes:
    return None
  layout = theme.layout([formatting.group_name(g) for g in courses.groups], 310)
  data: list[dict[str, Any]] = []
  for panel, group in enumerate(courses.groups, 1):
    for run in course.shown_runs(group):
      data += _training(courses, run, panel)
      data += _validation(courses, run, panel)
      data += _divergence(courses, run, panel)
    layout[theme.axis('y', panel)]['title'] = theme.title(
      'Loss (nats per token)'
    )
  return {
    'data': data,
    'layout': layout,
    'titles': courses.title(layout),
    'csv': {'y': 'loss (nats per token)'},
  }


def _training(
  courses: course.Courses, run: Run, panel: int
) -> list[dict[str, Any]]:
  """Returns the logged losses, pale, and their running mean."""
  rows, losses = course.values(run, 'train/loss')
  if not rows:
    return []
  when = {'kind': 'train'}
  color = courses.look[run.optimizer]['color']
  pale: dict[str, Any] = {
    'line': {'color': color, 'width': 1},
    'opacity': 0.16,
    'hoverinfo': 'skip',
  }
  window = max(1, round(len(losses) * SMOOTHING))
  raw = courses.trace(run, rows, losses, panel, when, **pale)
  # Towards the end ever fewer values would be averaged: the line would end in
  # one step's noise.
  kept = len(losses) - window // 2
  mean = courses.trace(
    run,
    rows[:kept],
    course.running_mean(losses, window)[:kept],
    panel,
    when,
    hovertemplate=courses.hover('Training loss: %{y:.4f}'),
  )
  raw['meta']['kind'], mean['meta']['kind'] = 'raw', 'train'
  return [raw, mean]


def _validation(
  courses: course.Courses, run: Run, panel: int
) -> list[dict[str, Any]]:
  rows, losses = course.values(run, 'eval/loss')
  if not rows:
    return []
  marked = len(rows) <= course.MARKED
  trace = courses.trace(
    run,
    rows,
    losses,
    panel,
    {'kind': 'eval'},
    mode='lines+markers' if marked else 'lines',
    marker={'symbol': courses.look[run.optimizer]['marker'], 'size': 6},
    hovertemplate=courses.hover('Validation loss: %{y:.4f}'),
  )
  trace['meta']['kind'] = 'eval'
  return [trace]


def _divergence(
  courses: course.Courses, run: Run, panel: int
) -> list[dict[str, Any]]:
  """Returns a mark at the last loss of a diverged run."""
  rows, losses = course.values(run, 'train/loss')
  if run.status != 'diverged' or not rows:
    return []
  color = courses.look[run.optimizer]['color']
  mark = courses.trace(
    run,
    rows[-1:],
    np.array(losses[-1:]),
    panel,
    {},
    mode='markers',
    marker={'symbol': 'x', 'size': 10, 'color': color},
    hovertemplate=(
      f'diverged at step {tuning.diverged_step(run)}'
      '<extra>%{fullData.name}</extra>'
    ),
  )
  mark['meta']['kind'] = 'mark'
  return [mark]
