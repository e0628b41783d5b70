"""What the tests of the comparison share."""

import importlib.util
import pathlib
import types

import pytest


@pytest.fixture(scope='session')
def study_runs() -> types.ModuleType:
  """Writer of run directories, study_runs.py."""
  path = pathlib.Path(__file__).with_name('study_runs.py')
  spec = importlib.util.spec_from_file_location('study_runs', path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='session')
def study_dir(
  study_runs: types.ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
  """A finished study: 2 architectures × 3 optimizers × 2 seeds, and trials."""
  root = tmp_path_factory.mktemp('study')
  study_runs.write_study(root)
  return root
