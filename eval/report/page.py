"""The frame of the pages: one HTML file that needs no network."""

import base64
from collections.abc import Sequence
import dataclasses
import gzip
import html
from importlib import resources
import json
import os
import pathlib
import string
from typing import Any

from plotly import offline

from steepest.eval.plots import theme

# Sections from which on a page has a table of contents.
_LONG = 4
# Options up to which they are buttons; beyond, a menu.
_BUTTONS = 5
_DASHES = {
  'solid': '',
  'dash': '5 3',
  'dot': '2 3',
  'dashdot': '6 3 2 3',
  'longdash': '9 4',
  'longdashdot': '9 3 2 3',
}


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of a page.

  Attributes:
    key: of its anchor.
    title: as text.
    parts: HTML.
  """

  key: str
  title: str
  parts: Sequence[str]


def write_page(
  path: pathlib.Path,
  *,
  title: str,
  subtitle: str,
  headline: str,
  sections: Sequence[Section],
  footer: str,
  figures: dict[str, Any],
) -> pathlib.Path:
  """Writes a page and returns its path.

  Args:
    path: of the file; replaced as a whole.
    title: HTML, as the texts below are.
    subtitle: below it.
    headline: the answer, at the top.
    sections: in order.
    footer: where the numbers are from.
    figures: id of an element -> Plotly figure drawn there.
  """
  # A third of the size; browsers unpack it.
  library = base64.b64encode(
    gzip.compress(offline.get_plotlyjs().encode(), mtime=0)
  ).decode()
  page = string.Template(_resource('page.html')).substitute(
    title=title,
    subtitle=subtitle,
    headline=headline,
    contents=_contents(sections),
    sections='\n'.join(_section(section) for section in sections),
    footer=footer + _SIZE,
    figures=_script_json(_shared(figures)),
    plotly=library if figures else '',
    css=_resource('page.css'),
    js=_resource('page.js'),
  )
  size = f'{len(page.encode()) / 1e6:6.2f}'
  part = f'{len(library) / 1e6:6.2f}' if figures else f'{0:6.2f}'
  return replace(path, page.replace('@SIZE@', size).replace('@PART@', part))


_SIZE = (
  '<p>Size of this file: @SIZE@ MB, of which @PART@ MB are the plot library '
  '(plotly.js); it loads nothing.</p>'
)


def replace(path: pathlib.Path, content: str) -> pathlib.Path:
  """Writes a file to a temporary name, then renames."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  temporary.write_text(content, 'utf-8')
  os.replace(temporary, path)
  return path


def escape(value: object) -> str:
  """Returns `value` as HTML text, safe in attributes too."""
  return html.escape(str(value), quote=True)


def swatch(optimizer: str, look: dict[str, dict[str, str]]) -> str:
  """Returns the optimizer's line sample: its colour and dash."""
  style = look[optimizer]
  return (
    '<svg class="swatch" width="26" height="10" aria-hidden="true"><line x1="1"'
    f' y1="5" x2="25" y2="5" stroke="{style["color"]}" stroke-width="3" '
    f'stroke-dasharray="{_DASHES[style["dash"]]}"/></svg>'
  )


def figure(key: str, name: str, caption: str, legend: str = '') -> str:
  """Returns the place of a figure, with its downloads.

  Args:
    key: of the figures of the page.
    name: what it shows, as text, for those who cannot see it.
    caption: HTML.
    legend: HTML of `legend`.
  """
  label = escape(name)
  buttons = ''.join(
    f'<button type="button" class="download" data-figure="{key}" '
    f'data-format="{form.lower()}" aria-label="Download {label} as {form}">'
    f'{form}</button>'
    for form in ('SVG', 'CSV')
  )
  return (
    f'<figure>{legend}<div class="plot" id="{key}" role="img" '
    f'aria-label="{label}"></div><figcaption><span class="downloads">{buttons}'
    f'</span><span class="caption">{caption}</span></figcaption></figure>'
  )


def legend(names: dict[str, str], seeds: Sequence[int] = ()) -> str:
  """Returns buttons that show and hide optimizers, and seeds, everywhere.

  Args:
    names: optimizer -> its name.
    seeds: with buttons of their own; none for one seed.
  """
  look = theme.styles(list(names))
  chips = [
    f'<button type="button" class="chip" aria-pressed="true" '
    f'data-optimizer="{escape(key)}">{swatch(key, look)}{escape(name)}</button>'
    for key, name in names.items()
  ]
  if len(seeds) > 1:
    chips += [
      '<button type="button" class="chip seed" aria-pressed="true" '
      f'data-seed="{seed}">seed {seed}</button>'
      for seed in seeds
    ]
  return f'<div class="chips">{"".join(chips)}</div>'


def switch(name: str, label: str, options: Sequence[tuple[str, str]]) -> str:
  """Returns a choice of one option, buttons or, of many, a menu.

  Args:
    name: by which the page knows it.
    label: as text.
    options: value and text.
  """
  if len(options) > _BUTTONS:
    listed = ''.join(
      f'<option value="{escape(value)}">{escape(text)}</option>'
      for value, text in options
    )
    return (
      f'<label class="choice">{escape(label)} <select data-name="{name}">'
      f'{listed}</select></label>'
    )
  buttons = ''.join(
    f'<button type="button" data-value="{escape(value)}">{escape(text)}'
    '</button>'
    for value, text in options
  )
  return (
    f'<span class="choice">{escape(label)} <span class="switch" role="group" '
    f'aria-label="{escape(label)}" data-name="{name}">{buttons}</span></span>'
  )


def scroll(table: str, label: str) -> str:
  """Returns a table that scrolls by itself where the screen is narrow."""
  return (
    f'<div class="scroll" role="region" tabindex="0" '
    f'aria-label="{escape(label)}">{table}</div>'
  )


def fold(title: str, body: str, few: bool) -> str:
  """Returns a titled part, folded away unless there are few like it.

  Args:
    title: as text.
    body: HTML.
    few: whether it stands open.
  """
  if few:
    return f'<h3>{escape(title)}</h3>{body}'
  return f'<details><summary>{escape(title)}</summary>{body}</details>'


def table(
  heads: Sequence[str],
  rows: Sequence[Sequence[str]],
  style: str = '',
  first_is_head: bool = True,
) -> str:
  """Returns a table of HTML cells, the first of a row its head.

  Args:
    heads: HTML; a leading '#' right-aligns the column.
    rows: HTML cells.
    style: class of the table.
    first_is_head: whether the first cell of a row names it.
  """
  right = [head.startswith('#') for head in heads]
  head = ''.join(
    f'<th{" class=" + chr(34) + "num" + chr(34) if r else ""}>'
    f'{h.removeprefix("#")}</th>'
    for h, r in zip(heads, right)
  )
  body = []
  for row in rows:
    cells = []
    for i, (cell, r) in enumerate(zip(row, right, strict=True)):
      number = ' class="num"' if r else ''
      if i == 0 and first_is_head:
        cells.append(f'<th scope="row">{cell}</th>')
      else:
        cells.append(f'<td{number}>{cell}</td>')
    body.append(f'<tr>{"".join(cells)}</tr>')
  return (
    f'<table class="{style}"><thead><tr>{head}</tr></thead>'
    f'<tbody>{"".join(body)}</tbody></table>'
  )


def data(
  value: float | None, text: str, *path: object, scale: float = 1
) -> str:
  """Returns a shown number with what it is a rounding of.

  Args:
    value: unrounded; None shows a dash.
    text: how it is shown.
    path: keys under which report.json holds it.
    scale: of the shown number, 100 for percent.
  """
  if value is None:
    return '–'
  keys = (str(p).replace('~', '~0').replace('/', '~1') for p in path)
  pointer = escape(''.join(f'/{key}' for key in keys))
  scaled = '' if scale == 1 else f' data-scale="{scale}"'
  return (
    f'<data value="{value!r}" data-path="{pointer}"{scaled}>{escape(text)}'
    '</data>'
  )


def _contents(sections: Sequence[Section]) -> str:
  if len(sections) < _LONG:
    return ''
  items = ''.join(
    f'<li><a href="#{section.key}">{escape(section.title)}</a></li>'
    for section in sections
  )
  return f'<nav class="contents" aria-label="Contents"><ol>{items}</ol></nav>'


def _section(section: Section) -> str:
  return (
    f'<section id="{section.key}"><h2>{escape(section.title)}</h2>'
    f'{"".join(section.parts)}</section>'
  )


def _shared(figures: dict[str, Any]) -> dict[str, Any]:
  """Returns the figures with positions that traces share written once."""
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


def _resource(name: str) -> str:
  return (
    resources.files('steepest.eval.report').joinpath(name).read_text('utf-8')
  )


def _script_json(value: Any) -> str:
  """Returns JSON that cannot end the script element that it stands in."""
  dumped = json.dumps(value, separators=(',', ':'), allow_nan=False)
  return dumped.replace('<', '\\u003c').replace('&', '\\u0026')
