"""Writes a report: a page that needs no network, and the tables behind it."""

from collections.abc import Callable, Sequence
import datetime
import json
import os
import pathlib
import shlex
from typing import Any

import pandas as pd
from rich.console import Console

from steepest.report import (
  axes,
  batches,
  claims,
  curves,
  differences,
  fairness,
  page,
  results,
  runs,
  scaling,
  scores,
  section,
  speed,
  speedups,
  tables,
  tuning,
  verdicts,
  widths,
  words,
)
from steepest.report.tables import Comparison

# The topics of the page, in order; those that start open come first.
SECTIONS: tuple[Callable[[Comparison], list[section.Section]], ...] = (
  scaling.sections,
  speed.trade_off,
  results.sections,
  curves.loss,
  tuning.sections,
  differences.sections,
  axes.sections,
  batches.sections,
  speed.sections,
  scores.sections,
  widths.sections,
  fairness.sections,
)
# Frames of a comparison that are not in its tables.
_CONCLUDED = ('verdicts', 'pairs', 'cells', 'tuning', 'fairness', 'left_out')
# Frames too long for the JSON: they are in tables/ only.
_LONG = ('points', 'answers')


def run(
  paths: Sequence[str | os.PathLike[str]],
  out_dir: str | os.PathLike[str],
  command: Sequence[str],
  known: runs.Known,
  console: Console,
  insist: bool = False,
  step_times: str = '',
  claims_too: bool = False,
) -> pathlib.Path:
  """Compares the runs in directories, writes the report and prints its table.

  Args:
    paths: of runs, or of a report's tables.
    out_dir: as in `write`.
    command: as in `write`.
    known: as in `tables.read`.
    console: for the table of results.
    insist: as in `verdicts.compare`.
    step_times: file for `runs.read_timing`; '': the studies' own.
    claims_too: whether to write claims.md.

  Returns:
    The path of report.html.
  """
  found = tables.read(paths, known)
  timing = runs.read_timing(pathlib.Path(step_times)) if step_times else None
  comparison = verdicts.compare(found, insist, timing)
  path = write(comparison, out_dir, command)
  if claims_too:
    page.replace(path.with_name('claims.md'), claims.markdown(comparison))
  results.print_table(comparison, console)
  return path


def write(
  comparison: Comparison,
  out_dir: str | os.PathLike[str],
  command: Sequence[str],
) -> pathlib.Path:
  """Writes report.html, report.md, report.json, verdicts.csv and tables/.

  Args:
    comparison: to show.
    out_dir: directory for the files; created if missing.
    command: the command line, for the footer.

  Returns:
    The path of report.html.
  """
  out = pathlib.Path(out_dir)
  out.mkdir(parents=True, exist_ok=True)
  tables.write(comparison.tables, out / 'tables')
  for name, frame in _concluded(comparison).items():
    tables.write_table(frame, out / 'tables' / f'{name}.csv')
  tables.write_table(comparison.verdicts, out / 'verdicts.csv')
  origin = _origin(comparison, command)
  page.replace(out / 'report.json', _json(comparison, origin))
  answers = results.answers(comparison)
  parts = [part for topic in SECTIONS for part in topic(comparison)]
  heads, rows = results.plain_table(comparison)
  text = words.render(
    'report.md.j2',
    subtitle=_subtitle(comparison),
    answers=answers,
    heads=heads,
    rows=rows,
    notes=results.plain_notes(comparison),
    origin=origin,
  )
  page.replace(out / 'report.md', text)
  return page.write(
    out / 'report.html',
    title='Optimizer comparison',
    subtitle=_subtitle(comparison),
    sections=sorted(parts, key=lambda part: part.folded),
    optimizers=comparison.tables.runs['optimizer'].unique(),
    answers=answers,
    origin=origin,
  )


def _concluded(comparison: Comparison) -> dict[str, pd.DataFrame]:
  """Returns the frames that say what follows from the tables."""
  frames = {name: getattr(comparison, name) for name in _CONCLUDED}
  found = speedups.of(comparison)
  if len(found.rows):
    frames |= {'speedups': found.rows, 'trends': found.trends}
  return frames


def _json(comparison: Comparison, origin: dict[str, str]) -> str:
  """Returns the tables as JSON, each a list of rows; see tables.Comparison."""
  frames = _concluded(comparison) | {
    name: getattr(comparison.tables, name)
    for name in tables.NAMES
    if name not in _LONG
  }
  content: dict[str, Any] = {'origin': origin}
  content |= {
    name: json.loads(frame.to_json(orient='records', double_precision=15))
    for name, frame in frames.items()
  }
  return json.dumps(content, indent=1, allow_nan=False)


def _subtitle(comparison: Comparison) -> str:
  held = comparison.tables.runs
  finals = int((held['stage'] == 'final').sum())
  names = words.join(
    words.name(name)
    for name in sorted(comparison.compared['optimizer'].unique())
  )
  trials = words.plural(len(held) - finals, 'trial')
  return (
    f'{names or "No optimizer"} compared on {len(comparison.compared)} of '
    f'{words.plural(finals, "final run")}, tuned on {trials}.'
  )


def _origin(comparison: Comparison, command: Sequence[str]) -> dict[str, str]:
  """Returns where the numbers are from, as name → value."""
  held = comparison.tables.runs

  def distinct(column: str) -> str:
    if column not in held:
      return 'not recorded'
    return ', '.join(sorted(held[column].dropna().astype(str).unique()))

  packages = [c for c in held if c.startswith('env.versions.')]
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
      float(held['seconds'].sum()) if 'seconds' in held else 0.0
    ),
  }
