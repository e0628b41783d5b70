"""Gets a study's text and benchmarks, and cuts the text into shards."""

import pathlib
import sys

from ml_collections import ConfigDict
from rich.console import Console

from steepest.data import benchmarks, corpora, prepare


def ready(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
  """Returns the study's configuration with data and benchmarks in place.

  Args:
    config: of a study; a data.source or a directory in eval_tasks_data that
      it names is taken as it is.
    workdir: of the study; shards of a fetched corpus go to WORKDIR/data.

  Raises:
    OSError: a download failed.
    ValueError: study.corpus is unknown, or what was fetched is not good.
  """
  config = ConfigDict(config.to_dict())
  console = Console(stderr=True)
  if config.eval_tasks:
    with console.status('getting the benchmarks'):
      directory = benchmarks.locate(config.eval_tasks_data)
    config.eval_tasks_data = str(directory.absolute())
  if config.data.source:
    return config
  with console.status('getting the corpus'):
    directory = _fetch(config.study.corpus)
  options = prepare.Options(
    inputs=f'{directory.absolute()}/*.jsonl',
    tokenizer=f'bpe-train:{config.study.vocab_size}',
    out=workdir / 'data',
  )
  manifest = prepare.prepare(options, console)
  for note in manifest.notes:
    print(f'note: {note}', file=sys.stderr)
  config.data.source = f'shards:{options.out}'
  return config


def _fetch(name: str) -> pathlib.Path:
  if name == 'passages':
    return corpora.fetch()
  kind, _, rest = name.partition(':')
  dataset, _, files = rest.rpartition(':')
  if kind != 'hub' or not dataset or not files:
    raise ValueError(
      f"study.corpus={name!r}: give 'passages' or 'hub:DATASET:FILE,…'"
    )
  return corpora.fetch_hub(dataset, files.split(','))
