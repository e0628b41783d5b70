"""The page in a headless Chromium: three widths, light, dark, print, saving."""

import csv
import io
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from steepest.report import report, tables, verdicts

_EVIL = '=1+1<img src=x onerror="document.title=1">,"'
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
    `.download[data-figure="plot-%s"][data-format="%s"]`).click();
  while (!window.saved.length) await new Promise((r) => setTimeout(r, 20));
  return [window.name_, await window.saved[0].text()];
})()"""
_OPEN = """(async () => {
  document.querySelectorAll('details').forEach((d) => { d.open = true; });
  const all = () => Array.from(document.querySelectorAll('.plot'));
  while (all().some((p) => !p.querySelector('.main-svg'))) {
    await new Promise((r) => setTimeout(r, 50));
  }
})()"""

# Whether no table needs to be scrolled.
_WHOLE = """Array.from(
  document.querySelectorAll('.scroll'), (s) => s.scrollWidth - s.clientWidth
).every((over) => over <= 0)"""
# Figures with titles of panels that are printed over each other.
_OVERLAPS = """Array.from(document.querySelectorAll('.plot'), (plot) => {
  const boxes = Array.from(
    plot.querySelectorAll('.annotation-text'), (t) => t.getBoundingClientRect()
  );
  return boxes.some((a, i) => boxes.some((b, j) => i < j &&
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
  ));
}).filter(Boolean).length"""


@pytest.fixture(scope='module')
def page(compared, tmp_path_factory):
  out = tmp_path_factory.mktemp('page')
  return report.write(compared, out, ['python', '-m', 'launch.report'])


def _figures(page):
  text = page.read_text('utf-8')
  match = re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)
  return json.loads(match[1])['figures']


def _open_whole(tab, page, width, dark=False):
  """Opens a page, which fits, has no title over another and no problem."""
  tab.problems.clear()
  tab.requests.clear()
  tab.show(width, 900, dark)
  tab.open(page)
  tab.evaluate(_OPEN)
  wide, seen = tab.evaluate(
    '[document.documentElement.scrollWidth, innerWidth]'
  )
  assert wide <= seen == width
  assert not tab.problems
  if width >= 1024:
    # Whole tables: none needs to be scrolled.
    assert tab.evaluate(_WHOLE)
  assert tab.evaluate(_OVERLAPS) == 0


@pytest.mark.parametrize(
  'width, dark', [(390, False), (1024, False), (1440, False), (1440, True)]
)
def test_fits_the_screen_and_reports_no_problem(page, tab, width, dark):
  _open_whole(tab, page, width, dark)
  assert [url for url in tab.requests if not url.startswith('data:')] == [
    page.resolve().as_uri()
  ]
  boxes = tab.evaluate(
    "Array.from(document.querySelectorAll('.plot'), (p) => {"
    "const s = p.querySelector('.main-svg');"
    'return [p.clientWidth, s.clientWidth, s.clientHeight];})'
  )
  assert len(boxes) == len(_figures(page)) >= 5
  assert all(drawn <= place and high > 100 for place, drawn, high in boxes)
  background = tab.evaluate('getComputedStyle(document.body).backgroundColor')
  assert (background == 'rgb(255, 255, 255)') is not dark
  if dark:
    colors = tab.evaluate(
      "Array.from(document.querySelectorAll('.plot .xtick text, .plot .gtitle,"
      " .plot .annotation-text'), (t) => getComputedStyle(t).fill)"
    )
    for color in set(colors):
      assert min(map(int, re.findall(r'\d+', color)[:3])) > 150, color


def test_fourteen_optimizers_read_well(plant, tab, tmp_path):
  names = ('adafactor', 'adamw', 'ademamix', 'adopt', 'cautious_adamw', 'muon')
  names += ('cautious_lion', 'lion', 'nadamw', 'prodigy', 'schedule_free')
  names += ('signum', 'soap', 'sophia')
  noise = np.random.default_rng(0).normal(0, 0.002, (len(names), 3))
  found = plant(
    {
      name: [float(3.4 + 0.01 * i + e) for e in of]
      for i, (name, of) in enumerate(zip(names, noise, strict=True))
    }
  )
  path = report.write(found, tmp_path / 'out', ['x'])
  for width in (390, 1024, 1440):
    _open_whole(tab, path, width)
    longest = tab.evaluate(
      "Math.max(...Array.from(document.querySelectorAll('td'),"
      ' (cell) => cell.textContent.length))'
    )
    assert longest < 400


def test_every_figure_is_saved_as_svg_and_csv(page, tab):
  tab.show(1440, 900)
  tab.open(page)
  tab.evaluate(_OPEN)
  tab.evaluate(_CATCH)
  for key, figure in _figures(page).items():
    key = key.removeprefix('plot-')
    name, text = tab.evaluate(_SAVE % (key, 'svg'))
    assert name.startswith(key) and name.endswith('.svg')
    root = xml.etree.ElementTree.fromstring(text)
    assert root.tag.endswith('svg') and '<path' in text
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


def test_switches_and_legend_are_linked(page, tab):
  tab.show(1440, 900)
  tab.open(page)
  tab.evaluate(_OPEN)
  click = "document.querySelector('%s').click()"
  axis = "document.getElementById('plot-loss').layout.xaxis"
  tab.evaluate(click % '[data-value=flops]')
  assert tab.evaluate(f'{axis}.title.text').startswith('FLOPs')
  low, high = tab.evaluate(f'{axis}.range')
  tab.evaluate(click % '[data-value="0.75,1"]')
  assert tab.evaluate(f'{axis}.range')[0] > low + 0.5 * (high - low)
  seeds = (
    "document.getElementById('plot-loss').data.filter((t) => t.visible &&"
    ' t.meta.seed !== undefined).length'
  )
  assert tab.evaluate(seeds) == 0
  tab.evaluate(click % '[data-value=single]')
  assert tab.evaluate(seeds) == 2 * 3 * 3
  tab.evaluate(click % '[data-optimizer=lion]')
  for key in ('loss', 'scores', 'trade-off'):
    shown = tab.evaluate(
      f"document.getElementById('plot-{key}').data.filter((t) => t.visible"
      ' !== false).map((t) => t.meta.optimizer)'
    )
    assert shown and 'lion' not in shown


def test_links_open_what_is_folded_and_keys_reach_all(page, tab):
  tab.show(1440, 900)
  tab.open(page)
  assert not tab.evaluate("document.getElementById('fairness').open")
  tab.evaluate(
    "(async () => {location.hash = 'fairness';"
    ' await new Promise((r) => setTimeout(r, 200));})()'
  )
  assert tab.evaluate("document.getElementById('fairness').open")
  controls = tab.evaluate(
    "Array.from(document.querySelectorAll('button, select, a, summary,"
    " .scroll'), (e) => e.tabIndex)"
  )
  assert len(controls) > 20 and min(controls) >= 0


def test_prints_what_is_folded(page, tab, tmp_path):
  tab.show(1440, 900, True)
  tab.open(page)
  tab.pdf(tmp_path / 'page.pdf')
  data = (tmp_path / 'page.pdf').read_bytes()
  assert data.startswith(b'%PDF') and len(data) > 50_000


def test_hostile_names_are_text_in_the_page_and_what_it_saves(
  study_runs, tab, tmp_path
):
  for seed in range(2):
    settings = study_runs.config('gpt2', 'adamw', seed, 'final')
    settings['optimizer']['name'] = settings['model']['name'] = _EVIL
    study_runs.write_run(tmp_path / 'runs' / str(seed), settings, 3.4)
  found = verdicts.compare(tables.read([tmp_path / 'runs']))
  path = report.write(found, tmp_path / 'out', [_EVIL])
  tab.problems.clear()
  tab.show(390, 900)
  tab.open(path)
  tab.evaluate(_OPEN)
  tab.evaluate(_CATCH)
  assert tab.evaluate("document.querySelectorAll('img').length") == 0
  assert not tab.problems
  _, text = tab.evaluate(_SAVE % ('loss', 'csv'))
  rows = list(csv.reader(io.StringIO(text.removeprefix('\ufeff'))))
  assert rows[1][1].startswith("'" + _EVIL.split(',')[0])
  _, text = tab.evaluate(_SAVE % ('loss', 'svg'))
  xml.etree.ElementTree.fromstring(text)
  assert tab.evaluate('document.title') == 'Optimizer comparison'
  assert 'onerror="document' not in text
