"""Writes a comparison as one HTML file that needs no network, and as JSON."""

from collections.abc import Sequence
import datetime
import json
import os
import pathlib
import shlex
from typing import Any

from steepest.eval import claims
from steepest.eval import plots_widths
from steepest.eval import report_axes
from steepest.eval import report_evidence
from steepest.eval import report_findings
from steepest.eval import report_json
from steepest.eval import report_markdown
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
  transfer: dict[str, Any] | None = None,
) -> pathlib.Path:
  """Writes report.html, report.json and report.md.

  Args:
    comparison: what to show.
    out_dir: directory for the files; created if missing.
    command: what was run, for the footer: a line or its words.
    transfer: transfer.json of launch.transfer, to be shown too; without it what
      the study's own trials say of several widths.

  Returns:
    The path of report.html.
  """
  line = command if isinstance(command, str) else shlex.join(command)
  date = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')
  out = pathlib.Path(out_dir)
  out.mkdir(parents=True, exist_ok=True)
  widths = transfer or plots_widths.own_result(comparison.runs)
  answers = claims.evaluate(comparison, widths)
  content = {
    'command': line,
    'date': date,
    **report_json.to_dict(comparison, widths, answers),
  }
  report_page.replace(
    out / 'report.json', json.dumps(content, indent=1, allow_nan=False)
  )
  origin = report_words.origin(comparison, line, date)
  report_page.replace(
    out / 'report.md', report_markdown.text(comparison, answers, origin)
  )
  figures = content['figures']
  return report_page.write_page(
    out / 'report.html',
    title='Optimizer comparison',
    subtitle=_subtitle(comparison),
    headline=_answers(comparison),
    sections=[
      report_sections.results(comparison),
      *report_findings.trade_off(comparison, figures),
      *report_sections.losses(comparison, figures),
      *report_findings.differences(comparison, figures),
      *report_axes.axes(comparison, figures),
      *report_findings.speed(comparison),
      *report_sections.scores(comparison, figures),
      *report_pairs.study_section(comparison),
      *report_findings.agreement(comparison),
      *report_sections.tuning(comparison, figures),
      *report_findings.sensitivities(comparison, figures),
      *report_evidence.transfer(widths, own=transfer is None),
      *report_sections.training(comparison, figures),
      *report_evidence.claims_section(answers),
      report_sections.fairness(comparison),
    ],
    footer=''.join(
      f'<p>{escape(name)}: {escape(value)}</p>' for name, value in origin
    ),
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
