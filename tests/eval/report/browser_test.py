"""The page in a headless Chromium: three widths, light, dark, print, saving."""

import csv
import io
import json
import math
import re
import struct
import xml.etree.ElementTree

import pytest

from steepest.eval.comparing import comparison
from steepest.eval.report import report

_EVIL = '=1+1<img src=x onerror="document.title=1">,"'
_WIDTHS = (390, 820, 1440)
# Catches what a button saves.
_CATCH = """
window.saved = [];
URL.createObjectURL = (blob) => { window.saved.push(blob); return 'data:,'; };
HTMLAnchorElement.prototype.click = function () {
  window.name_ = this.download;
};
"""
_SAVE = """(async () => {
  window.saved = [];
  document.querySelector(
    `.download[data-figure="%s"][data-format="%s"]`).click();
  while (!window.saved.length) await new Promise((r) => setTimeout(r, 20));
  return [window.name_, await window.saved[0].text()];
})()"""


@pytest.fixture(scope='module')
def page(study_runs, study_dir, tmp_path_factory):
  out = tmp_path_factory.mktemp('page')
  result = comparison.compare(comparison.load_runs([study_dir]))
  path = report.write(result, out, 'python -m launch.report')
  return path


def _figures(page):
  text = page.read_text('utf-8')
  match = re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)
  return json.loads(match[1])['figures']


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', _WIDTHS)
def test_fits_the_screen_and_reports_no_problem(
  page, tab, tmp_path, width, dark
):
  tab.problems.clear()
  tab.requests.clear()
  tab.show(width, 900, dark)
  tab.open(page)
  wide, seen, drawn = tab.evaluate(
    '[document.documentElement.scrollWidth, innerWidth,'
    "document.querySelectorAll('.plot .main-svg').length]"
  )
  assert wide <= seen == width
  assert drawn >= 3 * len(_figures(page))
  assert not tab.problems
  assert [url for url in tab.requests if not url.startswith('data:')] == [
    page.resolve().as_uri()
  ]
  picture = tmp_path / 'page.png'
  tab.screenshot(picture, whole=False)
  data = picture.read_bytes()
  assert struct.unpack('>II', data[16:24]) == (width, 900)
  # No figure is wider than its place, and none is empty.
  for box in tab.evaluate(
    "Array.from(document.querySelectorAll('.plot'), (p) => {"
    "const s = p.querySelector('.main-svg');"
    'return [p.clientWidth, s.clientWidth, s.clientHeight];})'
  ):
    assert box[1] <= box[0] and box[2] > 100
  background = tab.evaluate('getComputedStyle(document.body).backgroundColor')
  assert (background == 'rgb(255, 255, 255)') is not dark


def test_text_has_contrast_in_the_dark(page, tab):
  tab.show(1440, 900, True)
  tab.open(page)
  colors = tab.evaluate(
    "Array.from(document.querySelectorAll('.plot .xtick text, .plot .gtitle,"
    " .plot .annotation-text'), (t) => getComputedStyle(t).fill)"
  )
  assert colors
  for color in set(colors):
    assert min(map(int, re.findall(r'\d+', color)[:3])) > 150, color


def test_every_figure_is_saved_as_svg_and_csv(page, tab):
  tab.show(1440, 900)
  tab.open(page)
  tab.evaluate(_CATCH)
  for key, figure in _figures(page).items():
    name, text = tab.evaluate(_SAVE % (key, 'svg'))
    assert name.startswith(key) and name.endswith('.svg')
    root = xml.etree.ElementTree.fromstring(text)
    assert root.tag.endswith('svg')
    assert len(text) > 3000 and '<path' in text
    name, text = tab.evaluate(_SAVE % (key, 'csv'))
    assert name.startswith(key) and name.endswith('.csv')
    rows = list(csv.reader(io.StringIO(text.removeprefix('\ufeff'))))
    assert len({len(row) for row in rows}) == 1
    assert 'undefined' not in text and 'NaN' not in text
    points = sum(
      len(trace['y'])
      for trace in figure['data']
      if trace['meta']['kind'] != 'chance'
    )
    assert len(rows) == 1 + points


def test_the_csv_of_the_losses_is_what_was_logged(page, tab, study_dir):
  tab.show(1440, 900)
  tab.open(page)
  tab.evaluate(_CATCH)
  _, text = tab.evaluate(_SAVE % ('loss', 'csv'))
  rows = list(csv.DictReader(io.StringIO(text.removeprefix('\ufeff'))))
  run = 'finals/llama-sophia/seed=1'
  shown = [r for r in rows if r['run'] == run and r['kind'] == 'raw']
  lines = (study_dir / run / 'metrics.jsonl').read_text().splitlines()
  logged = [json.loads(line) for line in lines]
  assert len(shown) == len(logged)
  for row, wanted in zip(shown, logged):
    loss = float(row['loss (nats per token)'])
    assert loss == pytest.approx(wanted['train/loss'], rel=1e-5)
    tokens = 1e3 * float(row['Tokens (thousands)'])
    assert tokens == pytest.approx(wanted['tokens'], rel=1e-5)
    seconds = float(row['Training time (s)'])
    assert seconds == pytest.approx(wanted['seconds'], rel=1e-5)


def test_a_switch_changes_the_vertical_axis(page, tab):
  tab.show(1440, 900)
  tab.open(page)
  read = (
    "(() => {const {type, range, title} = document.getElementById('layers')"
  )
  read += '.layout.yaxis; return [type, ...range, title.text];})()'
  type_, low, high, title = tab.evaluate(read)
  assert (type_, title) == ('log', 'Gradient norm')
  assert low < math.log10(0.2) < math.log10(0.8) < high < 0.1
  tab.evaluate(
    "document.querySelector('[data-name=layer_quantity] "
    "[data-value=update_rms]').click()"
  )
  type_, low, high, title = tab.evaluate(read)
  assert (type_, title) == ('log', 'Update size')
  assert -3.8 < low < math.log10(0.25e-3) < math.log10(1e-3) < high < -2.8


def test_axes_part_and_legend_are_linked(page, tab):
  tab.show(1440, 900)
  tab.open(page)
  click = "document.querySelector('%s').click()"
  title = "document.getElementById('%s').layout.xaxis.title.text"
  tab.evaluate(click % '[data-value=flops]')
  for key in ('loss', 'training', 'score-curves'):
    assert tab.evaluate(title % key).startswith('FLOPs')
  tab.evaluate(click % '[data-value="0.75,1"]')
  for key in ('loss', 'training', 'score-curves'):
    low, high = tab.evaluate(
      f"document.getElementById('{key}').layout.xaxis.range"
    )
    assert low == pytest.approx(0.75 * high, rel=0.02)
  # What is dragged in one figure is shown in the others.
  tab.evaluate(
    "Plotly.relayout('training', {'xaxis.range[0]': 0.1,"
    " 'xaxis.range[1]': 0.2}).then(() => 0)"
  )
  low, high = tab.evaluate("document.getElementById('loss').layout.xaxis.range")
  assert low == pytest.approx(0.1, abs=0.01)
  assert high == pytest.approx(0.2, abs=0.01)
  tab.evaluate(click % '[data-optimizer=lion]')
  tab.evaluate(click % '[data-seed="1"]')
  shown = tab.evaluate(
    "['loss', 'lr', 'scores', 'training'].map((id) => document"
    '.getElementById(id).data.filter((t) => t.visible).map((t) =>'
    ' [t.meta.optimizer, t.meta.seed]))'
  )
  for figure in shown:
    assert figure
    assert 'lion' not in [optimizer for optimizer, _ in figure]
    assert 1 not in [seed for _, seed in figure]
  pressed = tab.evaluate(
    "Array.from(document.querySelectorAll('[data-optimizer=lion]'),"
    " (c) => c.getAttribute('aria-pressed'))"
  )
  assert len(pressed) > 2 and set(pressed) == {'false'}


def test_keys_are_enough(page, tab):
  """Every control can be reached with the tab key, and no text is hidden."""
  tab.show(1440, 900)
  tab.open(page)
  controls = tab.evaluate(
    "Array.from(document.querySelectorAll('button, select, a, summary,"
    " .scroll'), (e) => [e.tagName, e.tabIndex])"
  )
  assert len(controls) > 20
  assert all(index >= 0 for _, index in controls)
  anchors = tab.evaluate(
    "Array.from(document.querySelectorAll('.contents a'), (a) =>"
    ' [a.hash.slice(1), document.querySelectorAll(a.hash).length])'
  )
  assert anchors and all(count == 1 for _, count in anchors)
  repeated = tab.evaluate(
    "(() => { const ids = Array.from(document.querySelectorAll('main [id]'),"
    " (e) => e.id).filter((id) => !id.includes('-') || id in figures);"
    ' return ids.length - new Set(ids).size; })()'
  )
  assert repeated == 0


def test_prints(page, tab, tmp_path):
  tab.show(1440, 900, True)
  tab.open(page)
  tab.pdf(tmp_path / 'page.pdf')
  data = (tmp_path / 'page.pdf').read_bytes()
  assert data.startswith(b'%PDF') and len(data) > 50_000


def test_hostile_names_are_text_everywhere(study_runs, tab, tmp_path):
  """In the page, in what the figures show, and in the files it saves."""
  for seed in range(2):
    settings = study_runs.config('gpt2', 'adamw', seed, 'final')
    settings['optimizer']['name'] = settings['model']['name'] = _EVIL
    study_runs.write_run(tmp_path / 'runs' / str(seed), settings, 3.4)
  result = comparison.compare(comparison.load_runs([tmp_path / 'runs']))
  path = report.write(result, tmp_path / 'out', _EVIL)
  tab.problems.clear()
  tab.show(390, 900)
  tab.open(path)
  tab.evaluate(_CATCH)
  assert tab.evaluate('document.title') == 'Optimizer comparison'
  assert tab.evaluate("document.querySelectorAll('img').length") == 0
  assert not tab.problems
  _, text = tab.evaluate(_SAVE % ('loss', 'csv'))
  rows = list(csv.reader(io.StringIO(text.removeprefix('\ufeff'))))
  assert rows[1][1].startswith("'" + _EVIL.split(',')[0])
  _, text = tab.evaluate(_SAVE % ('loss', 'svg'))
  xml.etree.ElementTree.fromstring(text)
  assert tab.evaluate('document.title') == 'Optimizer comparison'
  assert 'onerror="document' not in text
