"""The page as text: what it holds, what it escapes, what it is rebuilt from."""

import json
import re

import pytest

from steepest.report import page, report, section, tables, theme, verdicts

_EVIL = '=1+1</script><img src=x onerror="document.title=1">,"{{ 7 * 7 }}'


def _text(path):
  """A page without the plot library, which has every string there is."""
  text = path.read_text('utf-8')
  return re.sub(r'id="plotly">[^<]*<', 'id="plotly"><', text)


def test_hostile_names_are_text(study_runs, tmp_path):
  for seed in range(2):
    settings = study_runs.config('gpt2', 'adamw', seed, 'final')
    settings['optimizer']['name'] = settings['model']['name'] = _EVIL
    study_runs.write_run(tmp_path / 'runs' / str(seed), settings, 3.4)
  found = verdicts.compare(tables.read([tmp_path / 'runs']))
  text = _text(report.write(found, tmp_path / 'out', [_EVIL]))
  assert '<img' not in text and '7 * 7' in text and '49' not in text[:2000]
  assert text.count('</script>') == 3
  figures = json.loads(re.search(r'id="figures">(.*?)</script>', text)[1])
  names = {
    trace['name']
    for figure in figures['figures'].values()
    for trace in figure['data']
  }
  # Plotly reads its labels as HTML.
  assert names and not any('<' in name for name in names)


def test_tables_alone_rebuild_the_page(compared, tmp_path):
  """What is committed under docs/results makes the very same page."""
  first = report.write(compared, tmp_path / 'a', ['x'])
  again = verdicts.compare(tables.read([tmp_path / 'a' / 'tables']))
  second = report.write(again, tmp_path / 'b', ['x'])
  both = [re.sub(r'<p>Date: .*?</p>', '', _text(p)) for p in (first, second)]
  assert both[0] == both[1]


def test_page_is_one_file_that_loads_nothing(compared, tmp_path):
  text = _text(report.write(compared, tmp_path, ['x']))
  assert not re.search(r'(src|href)="(?!data:|#)', text)
  assert text.count('id="plotly"') == 1
  ids = re.findall(r'<(?:section|details|div|main)[^>]* id="([^"]+)"', text)
  assert len(ids) == len(set(ids)) > 12


def test_answers_that_say_the_same_stand_once(tmp_path):
  said = ('no winner', False, 'nothing was searched')
  path = page.write(
    tmp_path / 'page.html',
    title='t',
    subtitle='s',
    sections=[],
    answers=[section.Answer(name, *said) for name in ('GPT-2', 'LLaMA')],
    origin={},
  )
  assert _text(path).count('nothing was searched') == 1
  assert 'GPT-2 · LLaMA' in _text(path)


@pytest.mark.parametrize('count', [3, 14, 54])
def test_every_optimizer_looks_unlike_every_other(count):
  looks = theme.styles([f'o{i}' for i in range(count - 1)] + ['adamw'])
  assert len({tuple(look.values()) for look in looks.values()}) == count
