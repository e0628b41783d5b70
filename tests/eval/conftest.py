"""What the tests of the comparison share."""

from collections.abc import Callable
import importlib.util
import json
import pathlib
import re
import types
from typing import Any

import pytest


def _load(name: str) -> types.ModuleType:
  path = pathlib.Path(__file__).parent / f'{name}.py'
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='session')
def study_runs() -> types.ModuleType:
  """Writer of run directories, study_runs.py."""
  return _load('../report/study_runs')


@pytest.fixture(scope='session')
def study_dir(
  study_runs: types.ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
  """A finished study: 2 architectures × 3 optimizers × 2 seeds, and trials."""
  root = tmp_path_factory.mktemp('study')
  study_runs.write_study(root)
  return root


@pytest.fixture(scope='session')
def figures_of() -> Callable[[str], dict[str, Any]]:
  """Returns a function from a page's text to its figures."""

  def read(text: str) -> dict[str, Any]:
    match = re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)
    assert match
    held = json.loads(match[1])
    for figure in held['figures'].values():
      for trace in figure['data']:
        if 'xs' in trace:
          trace['xs'] = held['positions'][trace['xs']]
    return held['figures']

  return read
