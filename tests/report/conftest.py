"""What the tests of the report share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import importlib.util
import json
import pathlib
import types
from typing import Any

import pytest

from steepest.report import tables, verdicts

RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def _load(name: str) -> types.ModuleType:
  path = pathlib.Path(__file__).with_name(f'{name}.py')
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='session')
def study_runs() -> types.ModuleType:
  """Writer of run directories, study_runs.py."""
  return _load('study_runs')


@pytest.fixture(scope='module')
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
  """A page of a headless Chromium, see browser.py."""
  browser = _load('browser')
  if browser.find() is None:
    pytest.skip('no Chromium: apt-get install chromium')
  with browser.tab(tmp_path_factory.mktemp('profile')) as page:
    yield page


@pytest.fixture(scope='session')
def compared(
  study_runs: types.ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tables.Comparison:
  """A finished study: 2 architectures × 3 optimizers × 3 seeds, and trials."""
  root = tmp_path_factory.mktemp('study')
  study_runs.write_study(root, seeds=3)
  return verdicts.compare(tables.read([root]))


@pytest.fixture
def plant(study_runs: types.ModuleType, tmp_path: pathlib.Path) -> Callable:
  """Writes a study of one model whose losses are given, and compares it.

  Args of the function:
    finals: optimizer → validation loss of each seed; None: it diverged.
    rates: optimizer → rates of its search; RATES where not given, of which the
      second is best; () for no search.
    tried: optimizer → what its trials set, a function of a trial's number.
    final: optimizer → what its final runs set, as study_runs.config.
    scores: optimizer → seed → task/metric → right answers.
    timing: optimizer → seconds of a step for each repeat.
    insist, steps: of verdicts.compare, of final runs.
  """

  def write(
    finals: Mapping[str, Sequence[float | None]],
    rates: Mapping[str, Sequence[float]] | None = None,
    tried: Mapping[str, Callable[[int], dict[str, Any]]] | None = None,
    final: Mapping[str, dict[str, Any]] | None = None,
    scores: Mapping[str, Sequence[dict[str, Sequence[int]]]] | None = None,
    timing: Mapping[str, Sequence[float]] | None = None,
    seeds: int | None = None,
    insist: bool = False,
  ) -> tables.Comparison:
    root = tmp_path / 'study'
    rates, tried, final = rates or {}, tried or {}, final or {}
    plan: dict[str, Any] = {'search': 'grid'}
    if seeds is not None:
      plan['seeds'] = seeds
    for name, losses in finals.items():
      of = rates[name] if name in rates else RATES
      plan[f'lrs_{name}'] = list(of)
      for i, lr in enumerate(of):
        best = min(1, len(of) - 1)
        changes = tried[name](i) if name in tried else {}
        study_runs.write_run(
          root / f'trials/gpt2-{name}/{i}',
          study_runs.config(
            'gpt2',
            name,
            0,
            'tune',
            **{'optimizer__lr': lr, 'steps': 100, **changes},
          ),
          3.6 + 0.05 * abs(i - best),
          rows=10,
        )
      chosen = of[min(1, len(of) - 1)] if of else 1e-3
      best_changes = tried[name](1) if name in tried else {}
      best_changes.pop('steps', None)
      changes = {'optimizer__lr': chosen, **best_changes, **final.get(name, {})}
      for seed, loss in enumerate(losses):
        path = root / f'finals/gpt2-{name}/seed={seed}'
        study_runs.write_run(
          path,
          study_runs.config('gpt2', name, seed, 'final', **changes),
          3.5 if loss is None else loss - 0.035,
          status='finished' if loss is not None else 'diverged',
          stop=None if loss is not None else 200,
          rows=20,
        )
        if scores is not None and loss is not None:
          study_runs.write_scores(path, scores[name][seed])
    (root / 'config.json').write_text(json.dumps({'study': plan}))
    if timing is not None:
      write_timing(root, timing)
    return verdicts.compare(tables.read([root]), insist=insist)

  return write


def write_timing(
  root: pathlib.Path, timing: Mapping[str, Sequence[float]]
) -> None:
  """Writes timing.json: optimizers take turns, repeat by repeat."""
  repeats = [
    {'optimizer': name, 'seconds_per_step': [seconds] * 5}
    for of in zip(*timing.values(), strict=True)
    for name, seconds in zip(timing, of, strict=True)
  ]
  content = {
    'device': '1 × cpu',
    'commit': 'abc',
    'groups': [{'group': {'architecture': 'gpt2'}, 'repeats': repeats}],
  }
  (root / 'timing.json').write_text(json.dumps(content))
