"""Writes a comparison as one HTML file that needs no network, and as JSON."""

from collections.abc import Sequence
import datetime
import json
import os
import pathlib
import shlex
from typing import Any

from steepest.eval import report_json
from steepest.eval import report_names
from steepest.eval import report_page
from steepest.eval import report_pairs
from steepest.eval import report_sections
from steepest.eval import report_words
from steepest.eval.comparison import Comparison
from steepest.eval.report_page import escape
from steepest.eval.report_terminal import print_table as print_table


def write(
  comparison: Comparison,
  out_dir: str | os.PathLike[str],
  command: str | Sequence[str],
) -> pathlib.Path:
  """Writes report.html and report.json.

  Args:
    comparison: what to show.
    out_dir: directory for both files; created if missing.
    command: what was run, for the footer: a line or its words.

  Returns:
    The path of report.html.
  """
  line = command if isinstance(command, str) else shlex.join(command)
  date = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')
  out = pathlib.Path(out_dir)
  out.mkdir(parents=True, exist_ok=True)
  content = {'command': line, 'date': date, **report_json.to_dict(comparison)}
  report_page.replace(
    out / 'report.json', json.dumps(content, indent=1, allow_nan=False)
  )
  figures = content['figures']
  return report_page.write_page(
    out / 'report.html',
    title='Optimizer comparison',
    subtitle=_subtitle(comparison),
    headline=_answers(comparison),
    sections=_sections(comparison, figures),
    footer=_footer(comparison, line, date),
    figures=figures,
  )


def _subtitle(comparison: Comparison) -> str:
  finals = [run for run in comparison.runs if run.stage == 'final']
  compared = sum(len(cell.runs) for cell in comparison.cells)
  optimizers = sorted({cell.optimizer for cell in comparison.cells})
  names = ', '.join(report_names.name(name) for name in optimizers)
  tuned = len(comparison.runs) - len(finals)
  return escape(
    f'{names or "No optimizer"} compared on {compared} of {len(finals)} final '
    f'runs, tuned on {tuned} trials.'
  )


def _answers(comparison: Comparison) -> str:
  items = ''.join(
    f'<li>{escape(report_words.headline(group))}</li>'
    for group in comparison.groups
  )
  return f'<ul class="answer">{items}</ul>'


def _sections(
  comparison: Comparison, figures: dict[str, Any]
) -> list[report_page.Section]:
  return [
    report_sections.results(comparison),
    *report_sections.losses(comparison, figures),
    *report_sections.scores(comparison, figures),
    *report_pairs.study_section(comparison),
    *report_sections.tuning(comparison, figures),
    *report_sections.training(comparison, figures),
    report_sections.fairness(comparison),
  ]


def _footer(comparison: Comparison, command: str, date: str) -> str:
  def distinct(key: str) -> str:
    values = {str(r.env[key]) for r in comparison.runs if key in r.env}
    return ', '.join(sorted(values)) or 'not recorded'

  devices = {
    f'{len(r.env["devices"])} × {r.env["device_kind"]}'
    for r in comparison.runs
    if 'devices' in r.env and 'device_kind' in r.env
  }
  versions: dict[str, set[str]] = {}
  for run in comparison.runs:
    if 'versions' in run.env:
      for package, version in run.env['versions'].items():
        versions.setdefault(package, set()).add(str(version))
  listed = ', '.join(
    f'{package} {"/".join(sorted(values))}'
    for package, values in sorted(versions.items())
  )
  lines = (
    ('Command', f'<code>{escape(command)}</code>'),
    ('Date', escape(date)),
    ('Commit of the runs', f'<code>{escape(distinct("git_commit"))}</code>'),
    ('Devices', escape(', '.join(sorted(devices)) or 'not recorded')),
    ('Python', escape(distinct('python'))),
    ('Versions', escape(listed or 'not recorded')),
  )
  return ''.join(f'<p>{name}: {value}</p>' for name, value in lines)
