"""Writes a report: a page that needs no network, and the tables behind it."""

from collections.abc import Callable, Sequence
import datetime
import json
import math
import os
import pathlib
import shlex
from typing import Any

import pandas as pd

from steepest.report import (
  axes,
  curves,
  differences,
  fairness,
  layers,
  page,
  results,
  scores,
  section,
  sensitivity,
  sizes,
  speed,
  tables,
  tuning,
  widths,
  words,
)
from steepest.report.tables import Comparison

# The topics of the page in their order.
SECTIONS: tuple[Callable[[Comparison], list[section.Section]], ...] = (
  speed.trade_off,
  results.sections,
  curves.loss,
  tuning.sections,
  differences.sections,
  axes.sections,
  sizes.sections,
  speed.sections,
  scores.sections,
  curves.scores,
  sensitivity.sections,
  widths.sections,
  curves.internals,
  layers.sections,
  fairness.sections,
)
# Of a comparison, what its tables do not hold.
_CONCLUDED = (
  'verdicts',
  'pairs',
  'cells',
  'tuning',
  'fairness',
  'left_out',
)
# Frames of more rows stand in tables/ alone.
_LONG = ('points', 'answers')


def write(
  comparison: Comparison,
  out_dir: str | os.PathLike[str],
  command: Sequence[str],
) -> pathlib.Path:
  """Writes report.html, report.md, report.json, verdicts.csv and tables/.

  Args:
    comparison: what to show.
    out_dir: directory for the files; created if missing.
    command: what was run, for the footer.

  Returns:
    The path of report.html.
  """
  out = pathlib.Path(out_dir)
  out.mkdir(parents=True, exist_ok=True)
  tables.write(comparison.tables, out / 'tables')
  for name in _CONCLUDED:
    frame = getattr(comparison, name)
    tables.write_table(frame, out / 'tables' / f'{name}.csv')
  tables.write_table(comparison.verdicts, out / 'verdicts.csv')
  origin = _origin(comparison, command)
  page.replace(out / 'report.json', _json(comparison, origin))
  answers = results.answers(comparison)
  heads, rows, note = results.plain_table(comparison)
  text = words.render(
    'report.md.j2',
    subtitle=_subtitle(comparison),
    answers=answers,
    heads=heads,
    rows=rows,
    note=note,
    origin=origin,
  )
  page.replace(out / 'report.md', text)
  return page.write(
    out / 'report.html',
    title='Optimizer comparison',
    subtitle=_subtitle(comparison),
    sections=[part for topic in SECTIONS for part in topic(comparison)],
    optimizers=comparison.tables.runs['optimizer'].unique(),
    answers=answers,
    origin=origin,
  )


def _json(comparison: Comparison, origin: dict[str, str]) -> str:
  """Returns the tables as JSON, each a list of rows; see tables.Comparison."""
  frames = {name: getattr(comparison, name) for name in _CONCLUDED} | {
    name: getattr(comparison.tables, name)
    for name in tables.NAMES
    if name not in _LONG
  }
  content: dict[str, Any] = {'origin': origin}
  content |= {name: _rows(frame) for name, frame in frames.items()}
  return json.dumps(content, indent=1, allow_nan=False, default=_plain)


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
  return [
    {k: None if _no_number(v) else v for k, v in row.items()}
    for row in frame.to_dict('records')
  ]


def _no_number(value: Any) -> bool:
  return isinstance(value, float) and not math.isfinite(value)


def _plain(value: Any) -> Any:
  """Returns a number of NumPy as Python's."""
  return value.item()


def _subtitle(comparison: Comparison) -> str:
  runs = comparison.tables.runs
  finals = int((runs['stage'] == 'final').sum())
  names = words.join(
    words.name(name)
    for name in sorted(comparison.compared['optimizer'].unique())
  )
  trials = words.plural(len(runs) - finals, 'trial')
  return (
    f'{names or "No optimizer"} compared on {len(comparison.compared)} of '
    f'{words.plural(finals, "final run")}, tuned on {trials}.'
  )


def _origin(comparison: Comparison, command: Sequence[str]) -> dict[str, str]:
  """Returns where the numbers are from, as names and values."""
  runs = comparison.tables.runs

  def distinct(column: str) -> str:
    if column not in runs:
      return 'not recorded'
    return ', '.join(sorted(runs[column].dropna().astype(str).unique()))

  packages = [c for c in runs if c.startswith('env.versions.')]
  return {
    'Command': shlex.join(command),
    'Date': f'{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC',
    'Commit of the runs': distinct('env.git_commit'),
    'Devices': distinct('env.device'),
    'Versions': ', '.join(
      f'{name.removeprefix("env.versions.")} {distinct(name)}'
      for name in packages
    ),
    'Training time of all runs': words.duration(
      float(runs['seconds'].sum()) if 'seconds' in runs else 0.0
    ),
  }
