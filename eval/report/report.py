"""Writes a comparison as one HTML file that needs no network, and as JSON."""

from collections.abc import Sequence
import datetime
import json
import os
import pathlib
import shlex
from typing import Any

from steepest.eval.comparing import claims, formatting
from steepest.eval.comparing.comparison import Comparison
from steepest.eval.plots import widths as width_plots
from steepest.eval.report import (
  axes,
  evidence,
  findings,
  json_file,
  markdown,
  page,
  pairs,
  sections,
  words,
)
from steepest.eval.report.page import escape
from steepest.eval.report.terminal import print_table as print_table


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
  widths = transfer or width_plots.own_result(comparison.runs)
  answers = claims.evaluate(comparison, widths)
  content = {
    'command': line,
    'date': date,
    **json_file.to_dict(comparison, widths, answers),
  }
  page.replace(
    out / 'report.json', json.dumps(content, indent=1, allow_nan=False)
  )
  origin = words.origin(comparison, line, date)
  page.replace(out / 'report.md', markdown.text(comparison, answers, origin))
  figures = json_file.drawn(comparison, widths)
  return page.write_page(
    out / 'report.html',
    title='Optimizer comparison',
    subtitle=_subtitle(comparison),
    headline=_answers(comparison),
    sections=[
      sections.results(comparison),
      *findings.trade_off(comparison, figures),
      *sections.losses(comparison, figures),
      *findings.differences(comparison, figures),
      *axes.axes(comparison, figures),
      *findings.speed(comparison),
      *sections.scores(comparison, figures),
      *pairs.study_section(comparison),
      *findings.agreement(comparison),
      *sections.tuning(comparison, figures),
      *findings.sensitivities(comparison, figures),
      *evidence.transfer(widths, own=transfer is None),
      *sections.training(comparison, figures),
      *evidence.claims_section(answers),
      sections.fairness(comparison),
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
  names = ', '.join(formatting.name(name) for name in optimizers)
  tuned = len(comparison.runs) - len(finals)
  return escape(
    f'{names or "No optimizer"} compared on {compared} of {len(finals)} final '
    f'runs, tuned on {tuned} trials.'
  )


def _answers(comparison: Comparison) -> str:
  items = ''.join(
    f'<li>{escape(words.headline(group))}</li>' for group in comparison.groups
  )
  return f'<ul class="answer">{items}</ul>'
