"""The frame of the pages: one HTML file that needs no network."""

from collections.abc import Sequence
from importlib import resources
import json
import os
import pathlib
import string
from typing import Any

from plotly import offline


def write_page(
  path: pathlib.Path,
  *,
  title: str,
  subtitle: str,
  headline: str,
  sections: Sequence[str],
  footer: str,
  figures: dict[str, Any],
) -> pathlib.Path:
  """Writes a page and returns its path.

  Args:
    path: of the file; replaced as a whole.
    title: HTML, as all texts are.
    subtitle: below it.
    headline: the answer, at the top.
    sections: in order.
    footer: where the numbers are from.
    figures: id of an element -> Plotly figure drawn there.
  """
  page = string.Template(_resource('report.html')).substitute(
    title=title,
    subtitle=subtitle,
    headline=headline,
    sections='\n'.join(sections),
    footer=footer,
    figures=_script_json(figures),
    plotly=offline.get_plotlyjs().replace('</script', '<\\/script'),
    css=_resource('report.css'),
    js=_resource('report.js'),
  )
  return replace(path, page)


def replace(path: pathlib.Path, content: str) -> pathlib.Path:
  """Writes a file to a temporary name, then renames."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  temporary.write_text(content, 'utf-8')
  os.replace(temporary, path)
  return path


def _resource(name: str) -> str:
  return resources.files('steepest.eval').joinpath(name).read_text('utf-8')


def _script_json(value: Any) -> str:
  """Returns JSON that cannot end the script element that it stands in."""
  dumped = json.dumps(value, separators=(',', ':'), allow_nan=False)
  return dumped.replace('<', '\\u003c').replace('&', '\\u0026')
