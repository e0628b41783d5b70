"""A self-contained HTML page: sections, figures and their data."""

import base64
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import gzip
import itertools
import json
import math
import os
import pathlib
from typing import Any

import jinja2
from markupsafe import Markup
from plotly import offline

from steepest.report import section, theme

_DASHES = {
  'solid': '',
  'dash': '5 3',
  'dot': '2 3',
  'dashdot': '6 3 2 3',
  'longdash': '9 4',
  'longdashdot': '9 3 2 3',
}


def write(
  path: pathlib.Path,
  *,
  title: str,
  subtitle: str,
  sections: Sequence[section.Section],
  optimizers: Iterable[str] = (),
  answers: Sequence[section.Answer] = (),
  origin: Mapping[str, str],
) -> pathlib.Path:
  """Writes a page and returns its path.

  Args:
    path: of the file; replaced atomically.
    title: plain text, as is everything below.
    subtitle: below it.
    sections: in order.
    optimizers: all that the page names; determines their colours.
    answers: at the top.
    origin: name → value: where the numbers are from; at the bottom.
  """
  figures = {
    f'plot-{figure.key}': figure.content
    for part in sections
    for figure in part.figures
  }
  page = (
    _environment()
    .get_template('page.html')
    .render(
      title=title,
      subtitle=subtitle,
      answers=_merged(answers),
      sections=sections,
      origin=origin.items(),
      looks=theme.styles(optimizers),
      dashes=_DASHES,
      kind_of=lambda block: type(block).__name__,
      spans_of=_spans,
      figures=_script_json(_shared(figures)),
      plotly=_plotly() if figures else '',
      css=_resource('page.css'),
      js=_resource('page.js'),
    )
  )
  return replace(path, page)


def replace(path: pathlib.Path, content: str) -> pathlib.Path:
  """Writes a file under a temporary name, then renames it."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  temporary.write_text(content, 'utf-8')
  os.replace(temporary, path)
  return path


def _merged(answers: Sequence[section.Answer]) -> list[section.Answer]:
  """Returns the answers with equal ones merged."""
  subjects: dict[section.Answer, list[str]] = {}
  for answer in answers:
    said = dataclasses.replace(answer, subject='')
    subjects.setdefault(said, []).append(answer.subject)
  return [
    dataclasses.replace(said, subject=' · '.join(of))
    for said, of in subjects.items()
  ]


@functools.cache
def _environment() -> jinja2.Environment:
  return jinja2.Environment(
    loader=jinja2.PackageLoader('steepest.report'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )


@functools.cache
def _plotly() -> str:
  """Returns the plot library compressed to a third of its size."""
  packed = gzip.compress(offline.get_plotlyjs().encode(), mtime=0)
  return base64.b64encode(packed).decode()


def _spans(columns: Sequence[section.Column]) -> list[tuple[str, int]]:
  """Returns the titles above the columns and how many columns each spans."""
  if not any(column.over for column in columns):
    return []
  return [
    (over, len(list(of)))
    for over, of in itertools.groupby(columns, lambda column: column.over)
  ]


def _shared(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the figures with positions shared by traces written once."""
  positions: dict[str, int] = {}
  thinner = {}
  for key, content in figures.items():
    data = []
    for trace in content['data']:
      if 'xs' in trace:
        dumped = json.dumps(trace['xs'], separators=(',', ':'))
        place = positions.setdefault(dumped, len(positions))
        trace = {**trace, 'xs': place}
      data.append(trace)
    thinner[key] = {**content, 'data': data}
  return {
    'figures': thinner,
    'positions': [json.loads(dumped) for dumped in positions],
  }


def _resource(name: str) -> Markup:
  """Returns a packaged file verbatim; it holds nothing from a run."""
  return Markup(
    (pathlib.Path(__file__).parent / 'templates' / name).read_text('utf-8')
  )


def _script_json(value: Any) -> Markup:
  """Returns JSON that cannot end its enclosing script element."""
  dumped = json.dumps(
    _finite(value),
    separators=(',', ':'),
    allow_nan=False,
    default=lambda number: number.item(),
  )
  return Markup(dumped.replace('<', '\\u003c').replace('&', '\\u0026'))


def _finite(value: Any) -> Any:
  """Returns `value` with null for numbers that JSON cannot represent."""
  if isinstance(value, Mapping):
    return {str(key): _finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
