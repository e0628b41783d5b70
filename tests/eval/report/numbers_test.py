"""Every number of the page and of report.md against report.json and the runs.

A number of a table stands in a `data` element that names where report.json
holds it unrounded; report.json is checked against the runs' summaries.
"""

import html.parser
import json
import re

import numpy as np
import pytest

from steepest.eval.comparing import comparison
from steepest.eval.parametrization import transfer
from steepest.eval.report import report

_UNITS = {
  '%': 1,
  's': 1,
  'min': 60,
  'h': 3600,
  'k': 1e3,
  'M': 1e6,
  'B': 1e9,
  'T': 1e12,
  'KiB': 2**10,
  'MiB': 2**20,
  'GiB': 2**30,
}
_POWERS = str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789')


class _Numbers(html.parser.HTMLParser):
  """Collects `data` elements, and the cells of tables that have none."""

  def __init__(self, text: str):
    super().__init__()
    self.found: list[tuple[dict[str, str], str]] = []
    self.bare: list[str] = []
    self._data: dict[str, str] | None = None
    self._cell: str | None = None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    if tag == 'data':
      self._data = dict(attrs)
      self.found.append((self._data, ''))
    elif tag == 'td':
      self._cell = ''

  def handle_endtag(self, tag):
    if tag == 'data':
      self._data = None
    elif tag == 'td' and self._cell is not None:
      self.bare.append(self._cell)
      self._cell = None

  def handle_data(self, data):
    if self._data is not None:
      self.found[-1] = (self._data, self.found[-1][1] + data)
    elif self._cell is not None:
      self._cell += data


def _look_up(content, pointer):
  """Follows a JSON pointer (RFC 6901)."""
  for key in pointer.split('/')[1:]:
    key = key.replace('~1', '/').replace('~0', '~')
    content = content[int(key) if isinstance(content, list) else key]
  return content


def _reads_as(text, value):
  """Whether `value`, rounded, is what `text` says."""
  text = text.replace('\u00a0', ' ').replace('−', '-').strip()
  if text.startswith('< '):
    return value < float(text[2:])
  match = re.match(r'([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*(.*)$', text)
  assert match, text
  digits, rest = match[1].replace(',', ''), match[2]
  power = re.match(r'× 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)$', rest)
  unit = _UNITS[rest] if rest in _UNITS else 1.0
  assert power or rest in _UNITS or rest in ('', '×'), text
  if power:
    unit = 10.0 ** int(power[1].translate(_POWERS))
  decimals = len(re.sub(r'e.*', '', digits).partition('.')[2])
  exponent = int(digits.partition('e')[2] or 0)
  step = unit * 10.0 ** (exponent - decimals)
  return abs(float(digits) * unit - value) <= 0.5001 * step


@pytest.fixture(scope='module')
def written(study_dir, tmp_path_factory):
  out = tmp_path_factory.mktemp('report')
  result = comparison.compare(comparison.load_runs([study_dir]))
  path = report.write(result, out, 'python -m launch.report')
  numbers = json.loads((out / 'report.json').read_text('utf-8'))
  return _Numbers(path.read_text('utf-8')), numbers, out


@pytest.fixture(scope='module')
def of_axes(study_runs, tmp_path_factory):
  """A report on two models at four values of axes."""
  root, out = (tmp_path_factory.mktemp(name) for name in ('runs', 'report'))
  study_runs.write_axis_study(root / 'study')
  result = comparison.compare(comparison.load_runs([root / 'study']))
  path = report.write(result, out, 'python -m launch.report')
  numbers = json.loads((out / 'report.json').read_text('utf-8'))
  return _Numbers(path.read_text('utf-8')), numbers, out


@pytest.mark.parametrize('which', ['written', 'of_axes'])
def test_every_number_of_the_page_is_in_the_json(which, request):
  page, numbers, _ = request.getfixturevalue(which)
  assert len(page.found) > 300
  for attributes, text in page.found:
    held = _look_up(numbers, attributes['data-path'])
    assert float(attributes['value']) == held, attributes
    scale = float(attributes.get('data-scale', 1))
    assert _reads_as(text, scale * held), (text, held, attributes)


def test_the_headline_table_is_what_the_summaries_say(written, study_dir):
  """All cells, columns, means and deviations."""
  page, numbers, _ = written
  seen = 0
  for attributes, _ in page.found:
    match = re.match(
      r'/architectures/(\d+)/cells/(\d+)/(values|scores)/(.+)/(mean|sd)$',
      attributes['data-path'],
    )
    if not match:
      continue
    cell = numbers['architectures'][int(match[1])]['cells'][int(match[2])]
    key = match[4].replace('~1', '/')
    values = []
    for run in cell['runs']:
      if match[3] == 'values':
        file = json.loads((study_dir / run / 'summary.json').read_text())
        values.append(file[key])
      else:
        file = json.loads((study_dir / run / 'eval/results.json').read_text())
        task, _, metric = key.partition('/')
        values.append(file['metrics'][task][metric])
    assert len(values) == 2
    wanted = np.mean(values) if match[5] == 'mean' else np.std(values, ddof=1)
    assert float(attributes['value']) == pytest.approx(wanted, abs=1e-12)
    seen += 1
  # Six cells: 13 means, and deviations of two losses, speed and time.
  assert seen == 6 * (13 + 4)


def test_costs_are_sums_over_the_trials(written, study_dir):
  page, numbers, _ = written
  shown = {a['data-path']: float(a['value']) for a, _ in page.found}
  for i, group in enumerate(numbers['architectures']):
    for j, cost in enumerate(group['costs']):
      cell = f'{group["architecture"]}-{cost["optimizer"]}'
      files = (study_dir / 'trials' / cell).glob('*/summary.json')
      trials = [json.loads(file.read_text()) for file in files]
      seconds = sum(trial['seconds'] for trial in trials)
      path = f'/architectures/{i}/costs/{j}/tuning/seconds'
      assert shown[path] == pytest.approx(seconds)


def test_no_cell_holds_another_number(written, figures_of):
  """A cell without `data` holds words, as report.json or a figure does."""
  page, numbers, out = written
  figures = figures_of((out / 'report.html').read_text('utf-8'))
  words = ' '.join(_strings([numbers, figures]))
  for cell in page.bare:
    for number in re.findall(r'\d+\.\d{4}', cell):
      assert number in words, cell


def test_effects_are_differences_of_summaries(of_axes, study_runs, figures_of):
  """What four epochs change, seed by seed, as the table and figure show it."""
  page, numbers, out = of_axes
  figures = figures_of((out / 'report.html').read_text('utf-8'))
  shown = {a['data-path']: float(a['value']) for a, _ in page.found}
  losses = {run['run']: run['summary']['eval_loss'] for run in numbers['runs']}
  points = [
    (trace['x'][0], trace['name']) for trace in figures['effects']['data']
  ]
  seen = 0
  for i, effect in enumerate(numbers['effects']):
    if effect['axis'] != 'epochs':
      continue
    cell = f'{effect["architecture"]}-{effect["optimizer"]}'
    wanted = np.mean(
      [
        losses[f'{cell}-epochs=4/seed={s}'] - losses[f'{cell}/seed={s}']
        for s in effect['seeds']
      ]
    )
    assert shown[f'/effects/{i}/loss/value'] == pytest.approx(wanted)
    near = [x for x, _ in points if x == pytest.approx(wanted, abs=1e-6)]
    assert near
    seen += 1
  assert seen == 6


def _strings(content):
  if isinstance(content, str):
    return [content]
  if isinstance(content, dict):
    content = list(content.values())
  if isinstance(content, list):
    return [text for item in content for text in _strings(item)]
  return []


def _rows(markdown):
  """Returns the tables of a Markdown text as lists of rows of cells."""
  tables = []
  for block in re.findall(r'(?:^\|.*\n)+', markdown, re.MULTILINE):
    lines = [line.strip().strip('|') for line in block.strip().splitlines()]
    rows = [re.split(r' (?<!\\)\| ', f' {line} ') for line in lines]
    tables.append([[cell.strip() for cell in row] for row in rows])
  return tables


def test_markdown_agrees_with_the_json(written):
  _, numbers, out = written
  text = (out / 'report.md').read_text('utf-8')
  for group in numbers['architectures']:
    assert group['headline'] in text.replace('\\', '')
  tables = _rows(text)
  for table in tables:
    assert len({len(row) for row in table}) == 1
  headlines = [t for t in tables if t[0][:2] == ['optimizer', 'seeds']]
  assert len(headlines) == 2
  for table, group in zip(headlines, numbers['architectures']):
    for row, cell in zip(table[2:], group['cells'], strict=True):
      entries = [*cell['values'].values(), *cell['scores'].values()]
      held = {name: entry['mean'] for name, entry in zip(table[0][2:], entries)}
      for name, shown in zip(table[0][2:], row[2:], strict=True):
        scale = 100 if 'acc' in name else 1
        first = shown.lstrip('●○').split(' ± ')[0]
        assert _reads_as(first, scale * held[name]), (name, shown)
  pairs = [t for t in tables if t[0][0] == 'validation loss']
  for table, group in zip(pairs, numbers['architectures'], strict=True):
    for row, pair in zip(table[2:], group['pairs']['eval_loss'], strict=True):
      assert _reads_as(row[1], pair['value'])
      low, high = row[2].split(' … ')
      assert _reads_as(low, pair['low']) and _reads_as(high, pair['high'])
      assert _reads_as(row[3].replace('&lt;', '<'), pair['p_holm'])
      assert (row[4] == 'yes') is pair['exceeds']
  assert numbers['command'].replace('_', '') in text.replace('\\_', '')
  for run in numbers['runs']:
    assert run['env']['git_commit'] in text


def test_markdown_is_text(study_runs, tmp_path):
  evil = '<img src=x>|`[a](javascript:1)`\n# b'
  settings = study_runs.config('gpt2', 'adamw', 0, 'final')
  settings['optimizer']['name'] = settings['model']['name'] = evil
  study_runs.write_run(tmp_path / 'runs' / 'a', settings, 3.4)
  result = comparison.compare(comparison.load_runs([tmp_path / 'runs']))
  report.write(result, tmp_path / 'out', evil)
  text = (tmp_path / 'out' / 'report.md').read_text('utf-8')
  assert '<img' not in text and '\n# b' not in text
  assert not re.search(r'(?<!\\)\]\(', text)
  for table in _rows(text):
    assert len({len(row) for row in table}) == 1


def _widths(study_runs, root, widths=(64, 128)):
  """Writes trials over the rate at several widths."""
  for width in widths:
    for k, lr in enumerate((1e-3, 2e-3, 4e-3, 8e-3)):
      settings = study_runs.config(
        'gpt2', 'adamw', 0, 'tune', model__width=width, optimizer__lr=lr
      )
      end = 4 - width / 1000 + 0.1 * (k - 1.5) ** 2
      study_runs.write_run(root / f'{width}-{lr}', settings, end, rows=20)


def test_a_study_of_several_widths_shows_its_own_transfer(
  study_runs, tmp_path, figures_of
):
  _widths(study_runs, tmp_path / 'runs')
  result = comparison.compare(comparison.load_runs([tmp_path / 'runs']))
  path = report.write(result, tmp_path / 'out', 'x')
  numbers = json.loads((tmp_path / 'out/report.json').read_text('utf-8'))
  (cell,) = numbers['transfer']['cells']
  assert [width['width'] for width in cell['widths']] == [64, 128]
  # Both parabolas are lowest between the second and the third rate.
  for width in cell['widths']:
    best = 2 ** width['log2_optimum']['mean']
    assert best == pytest.approx(1e-3 * 2**1.5, rel=0.01)
  assert cell['drift_steps_per_octave']['mean'] == pytest.approx(0, abs=0.01)
  lines = [
    trace
    for trace in figures_of(path.read_text('utf-8'))['transfer']['data']
    if 'best' not in trace['meta']['kind']
  ]
  assert [len(trace['x']) for trace in lines] == [4, 4]
  assert 'trials of this study' in path.read_text('utf-8')


def test_one_width_shows_no_transfer(study_runs, tmp_path):
  _widths(study_runs, tmp_path / 'runs', (64,))
  result = comparison.compare(comparison.load_runs([tmp_path / 'runs']))
  path = report.write(result, tmp_path / 'out', 'x')
  assert 'Do learning rates carry over' not in path.read_text('utf-8')


def test_a_damaged_transfer_experiment_is_one_line(tmp_path):
  with pytest.raises(FileNotFoundError, match='--transfer takes the workdir'):
    transfer.read(tmp_path)
  for text in ('{', '{"cells": [{}]}', '[]'):
    (tmp_path / 'transfer.json').write_text(text)
    with pytest.raises(ValueError, match='damaged') as error:
      transfer.read(tmp_path)
    assert '\n' not in str(error.value)
