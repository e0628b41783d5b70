"""The page and its JSON against the runs' files; the page loads nothing."""

import html.parser
import io
import json
import math
import re
import shutil

import numpy as np
import pytest
from rich.console import Console

from steepest.eval.comparing import comparison
from steepest.eval.plots import course, theme
from steepest.eval.report import report

_VOID = {'meta', 'link', 'br', 'img', 'input', 'hr', 'line'}
_EVIL = '<script>alert("x")</script>'


class _Page(html.parser.HTMLParser):
  """Collects elements and text; asserts that every element is closed."""

  def __init__(self, text: str):
    super().__init__()
    self.elements: list[tuple[str, dict[str, str | None]]] = []
    self.texts: list[str] = []
    self.code: dict[str, str] = {'script': '', 'style': ''}
    self._open: list[str] = []
    self.feed(text)
    self.close()
    assert not self._open

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in _VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if self._open and self._open[-1] in self.code:
      self.code[self._open[-1]] += data
    else:
      self.texts.append(data)

  @property
  def text(self) -> str:
    return ' '.join(' '.join(self.texts).split())


def _write(runs_dir, out, command='python -m launch.report'):
  result = comparison.compare(comparison.load_runs([runs_dir]))
  path = report.write(result, out, command)
  numbers = json.loads((out / 'report.json').read_text(), parse_constant=_no)
  return result, path, _Page(path.read_text()), numbers


def _no(constant):
  raise AssertionError(f'{constant} is not JSON')


@pytest.fixture(scope='module')
def written(study_dir, tmp_path_factory):
  return _write(study_dir, tmp_path_factory.mktemp('report'))


@pytest.fixture
def evil_runs(study_runs, tmp_path):
  """Writes runs whose every name tries to break out of the page."""
  for stage, lr in (('final', 1e-3), ('tune', 1e-3), ('tune', 2e-3)):
    settings = study_runs.config(
      'gpt2', 'adamw', 0, stage, optimizer__lr=lr, data__source=_EVIL
    )
    settings['optimizer']['name'] = _EVIL
    settings['model']['name'] = f'</title>{_EVIL}'
    name = f'{stage}{lr}<img src=x onerror=alert(1)>'
    study_runs.write_run(tmp_path / 'runs' / name, settings, 3.4, rows=20)
  settings['stage'] = 'final'
  settings['seed'] = 1
  study_runs.write_run(
    tmp_path / 'runs' / 'cut', settings, 3.4, status='diverged', stop=50
  )
  return tmp_path / 'runs'


def test_json_equals_the_summaries(written, study_dir):
  numbers = written[3]
  for group in numbers['architectures']:
    for cell in group['cells']:
      for name, seed in zip(cell['runs'], group['seeds']):
        path = study_dir / name
        summary = json.loads((path / 'summary.json').read_text())
        results = json.loads((path / 'eval/results.json').read_text())
        for key, entry in cell['values'].items():
          assert entry['per_seed'][seed] == summary[key]
        for key, entry in cell['scores'].items():
          task, _, metric = key.partition('/')
          assert entry['per_seed'][seed] == results['metrics'][task][metric]
          assert entry['questions'] == results['metrics'][task]['n']
  assert len(numbers['runs']) == 12 + 26


def test_page_says_each_verdict_in_words(written):
  result, _, page, numbers = written
  for group, content in zip(result.groups, numbers['architectures']):
    assert content['headline'] in page.text
    assert len(content['verdicts']) == len(group.verdicts) == 12
    for verdict in content['verdicts']:
      assert ' '.join(verdict['text'].split()) in page.text
  assert 'Questions scored: ARC-Easy 570' in page.text
  assert 'Limited : the first N questions of a task, N = 500.' in page.text
  assert 'no difference shown' in page.text


def test_page_loads_nothing(written):
  _, path, page, _ = written
  assert path.stat().st_size < 3e6
  for tag, attributes in page.elements:
    assert tag not in ('iframe', 'object', 'embed', 'base', 'audio', 'video')
    for name in ('src', 'href', 'srcset', 'action', 'poster', 'data'):
      value = attributes[name] if name in attributes else None
      assert value is None or value.startswith(('#', 'data:'))
    if tag == 'a':
      target = {'id': attributes['href'].removeprefix('#')}
      assert any(a.items() >= target.items() for _, a in page.elements)
  assert 'url(' not in page.code['style']
  assert '@import' not in page.code['style']
  policy = next(a['content'] for _, a in page.elements if 'http-equiv' in a)
  assert "default-src 'none'" in policy


def test_figures_hold_the_logged_numbers(written, study_dir, figures_of):
  result, path, *_ = written
  figures = figures_of(path.read_text('utf-8'))
  assert {'loss', 'training', 'lr', 'scores', 'score-curves'} <= set(figures)
  traces = figures['loss']['data']
  traces = [t for t in traces if t['meta']['kind'] in ('raw', 'eval')]
  assert len(traces) == 2 * 12
  for trace in traces:
    run = study_dir / trace['meta']['run']
    lines = (run / 'metrics.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    summary = json.loads((run / 'summary.json').read_text())
    key = 'eval/loss' if trace['meta']['kind'] == 'eval' else 'train/loss'
    rows = [row for row in rows if key in row]
    np.testing.assert_allclose(trace['y'], [r[key] for r in rows], rtol=1e-5)
    for x, unit in (('tokens', 1e3), ('seconds', 1)):
      wanted = [row[x] / unit for row in rows]
      np.testing.assert_allclose(trace['xs'][x], wanted, rtol=1e-5)
    # At the end what the summary says, and on the way in proportion.
    done = rows[-1]['tokens'] / summary['tokens']
    assert trace['xs']['flops'][-1] == pytest.approx(
      done * summary['flops'] / 1e12, rel=1e-5
    )
  for trace in figures['lr']['data']:
    if trace['meta']['kind'] == 'line':
      cell = f'{"gpt2" if trace["xaxis"] == "x" else "llama"}-'
      cell += trace['legendgroup']
      for lr, loss in zip(trace['x'], trace['y']):
        file = study_dir / 'trials' / cell / f'lr={lr:g}' / 'summary.json'
        summary = json.loads(file.read_text())
        assert loss == pytest.approx(summary['eval_loss'], rel=1e-5)
  marks = [t for t in figures['lr']['data'] if t['meta']['kind'] == 'diverged']
  assert [trace['x'] for trace in marks] == [[3.2e-3], [3.2e-3]]
  marks = [t for t in figures['scores']['data'] if t['meta']['kind'] == 'score']
  assert len(marks) == 6
  for mark, cell in zip(marks, result.cells):
    for x, error, score in zip(
      mark['x'], mark['error_x']['array'], cell.scores.values()
    ):
      assert x == pytest.approx(100 * score.mean, rel=1e-5)
      assert error == pytest.approx(100 * score.error, rel=1e-5)


def test_optimizers_differ_in_more_than_colour():
  look = theme.styles(['adamw', 'lion', 'sophia', 'muon', 'soap'])
  for key in ('color', 'dash', 'marker', 'pattern'):
    assert len({style[key] for style in look.values()}) == 5
  many = theme.styles([f'optimizer {i}' for i in range(50)])
  assert len({tuple(style.values()) for style in many.values()}) == 50
  # The same three look the same in every figure.
  assert theme.styles(['lion'])['lion'] == look['lion']


def test_names_cannot_become_markup(evil_runs, tmp_path):
  _, path, page, numbers = _write(evil_runs, tmp_path / 'out', _EVIL)
  assert 'alert("x")' in page.text
  # Figures, the plot library, the page's own.
  assert len([tag for tag, _ in page.elements if tag == 'script']) == 3
  assert not [tag for tag, _ in page.elements if tag in ('img', 'a/')]
  for _, attributes in page.elements:
    assert not [name for name in attributes if name.startswith('on')]
  text = path.read_text()
  figures = re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)[1]
  assert '<' not in figures
  shown = json.dumps(
    [
      [trace['name'], trace['hovertemplate']]
      for figure in json.loads(figures)['figures'].values()
      for trace in figure['data']
      if trace.get('hovertemplate')
    ]
  )
  assert '<script' not in shown and '&lt;script' in shown
  assert numbers['command'] == _EVIL


def test_excluded_runs_are_listed_with_their_reasons(
  study_runs, study_dir, tmp_path
):
  root = tmp_path / 'study'
  shutil.copytree(study_dir, root)
  write, config = study_runs.write_run, study_runs.config
  write(
    root / 'odd', config('gpt2', 'lion', 0, 'final', schedule__kind='linear'), 1
  )
  settings = config('gpt2', 'lion', 2, 'final', optimizer__lr=4e-4)
  write(root / 'burst', settings, 3.4, status='diverged', stop=150)
  write(root / 'going', settings, 3.4, status='unfinished', stop=100)
  _, _, page, numbers = _write(root, tmp_path / 'out')
  assert 'schedule.kind is "linear", not "cosine"' in page.text
  assert 'seed 2 : diverged at step 150' in page.text
  assert 'unfinished, step 99 of 400' in page.text
  assert 'seed 2 diverged at step 150' in [
    attributes['title']
    for _, attributes in page.elements
    if 'title' in attributes
  ]
  (content,) = [
    a for a in numbers['architectures'] if a['architecture'] == 'gpt2'
  ]
  assert [entry['run'] for entry in content['left_out']] == ['odd']
  assert content['diverged'] == [{'run': 'burst', 'step': 150}]
  assert [entry['run'] for entry in content['unfinished']] == ['going']


def test_an_optimizer_that_always_diverges_has_a_row(study_runs, tmp_path):
  runs = tmp_path / 'runs'
  write, config = study_runs.write_run, study_runs.config
  write(runs / 'a', config('gpt2', 'adamw', 0, 'final'), 3.4, rows=20)
  settings = config('gpt2', 'lion', 0, 'final')
  write(runs / 'b', settings, 3.4, status='diverged', stop=120, rows=20)
  result, _, page, _ = _write(runs, tmp_path / 'out')
  assert [cell.optimizer for cell in result.cells] == ['adamw', 'lion']
  assert 'Lion 0 seed 0 diverged at step 120' in page.text
  stream = io.StringIO()
  report.print_table(result, Console(file=stream, width=100))
  assert 'diverged at step 120' in stream.getvalue()


@pytest.mark.parametrize('part', ['trials', 'finals/gpt2-lion', 'unfinished'])
def test_partial_studies_have_a_report(study_runs, study_dir, tmp_path, part):
  root = study_dir / part
  if part == 'unfinished':
    root = tmp_path / 'runs'
    settings = study_runs.config('gpt2', 'adamw', 0, 'final')
    study_runs.write_run(
      root / 'a', settings, 3.4, status='unfinished', stop=8, rows=20
    )
  result, _, page, _ = _write(root, tmp_path / 'out')
  expected = {
    'trials': 'No final run has finished yet',
    'finals/gpt2-lion': 'only Lion has finished',
    'unfinished': 'unfinished, step',
  }
  assert expected[part] in page.text
  report.print_table(result, Console(file=io.StringIO(), width=100))


def test_values_that_are_no_numbers_stay_out(study_runs, tmp_path):
  settings = study_runs.config('gpt2', 'adamw', 0, 'final')
  path = tmp_path / 'runs' / 'a'
  study_runs.write_run(path, settings, 3.4, rows=20)
  rows = (path / 'metrics.jsonl').read_text().splitlines()
  row = json.loads(rows[3]) | {'train/loss': math.nan}
  (path / 'metrics.jsonl').write_text('\n'.join([*rows, json.dumps(row)]))
  summary = json.loads((path / 'summary.json').read_text())
  summary |= {'train_loss': math.inf, 'eval_loss': None}
  (path / 'summary.json').write_text(json.dumps(summary))
  _write(tmp_path / 'runs', tmp_path / 'out')


def test_skipped_updates_and_rollbacks_are_counted(study_runs, tmp_path):
  """And a step without a loss does not break the curves."""
  settings = study_runs.config('gpt2', 'adamw', 0, 'final')
  path = tmp_path / 'runs' / 'a'
  study_runs.write_run(path, settings, 3.4, rows=20)
  rows = [json.loads(r) for r in (path / 'metrics.jsonl').open()]
  del rows[5]['train/loss'], rows[5]['grad_norm']
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (path / 'metrics.jsonl').write_text(lines)
  summary = json.loads((path / 'summary.json').read_text())
  summary |= {'skipped_updates': 3, 'rollbacks': 0}
  (path / 'summary.json').write_text(json.dumps(summary))
  _, _, page, _ = _write(tmp_path / 'runs', tmp_path / 'out')
  assert 'finished, 3 updates skipped' in page.text
  assert 'rollbacks' not in page.text


@pytest.mark.parametrize('width', [100, 120])
def test_terminal_table_fits(written, width):
  stream = io.StringIO()
  report.print_table(written[0], Console(file=stream, width=width))
  text = stream.getvalue()
  assert max(map(len, text.splitlines())) <= width
  for cell in written[0].cells:
    assert f'{cell.spreads["eval_loss"].mean:.4f}' in text
    assert f'{100 * cell.scores["mmlu/acc"].mean:.1f}' in text
  assert '…' not in text


def test_running_mean_against_numpy():
  values = np.random.default_rng(0).normal(size=50)
  found = course.running_mean(values, 5)
  np.testing.assert_allclose(
    found[2:-2], np.convolve(values, np.ones(5) / 5, 'valid')
  )
  assert found[0] == pytest.approx(values[0])
  # A straight line stays itself, up to its ends.
  line = np.arange(30.0)
  np.testing.assert_allclose(course.running_mean(line, 7), line)


def test_thinning_keeps_the_mean_and_the_size():
  values = np.arange(10_000.0)
  thin = course.thin(values, 400)
  assert len(thin) == 400
  assert thin.mean() == pytest.approx(values.mean())
  np.testing.assert_array_equal(course.thin(values[:10], 400), values[:10])


def test_long_runs_stay_small(study_runs, tmp_path):
  for seed in range(2):
    for optimizer in ('adamw', 'lion', 'sophia'):
      settings = study_runs.config('gpt2', optimizer, seed, 'final', steps=9000)
      study_runs.write_run(
        tmp_path / f'{optimizer}{seed}', settings, 3.0, rows=9000
      )
  _, path, _, _ = _write(tmp_path, tmp_path / 'out')
  assert path.stat().st_size < 3e6
