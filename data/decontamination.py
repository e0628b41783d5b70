"""Finds documents that repeat a piece of a benchmark.

A piece is 13 consecutive words, as in GPT-3's overlap analysis (arXiv
2005.14165, appendix C). K is words, G runs of 13 of them.
"""

from collections.abc import Iterable, Iterator, Sequence
import os
import pathlib
import re
from typing import Any

import numpy as np

from steepest.data import benchmarks, reading

_RUN = 13
# Odd, so that every power is invertible modulo 2^64 and no word drops out.
_BASE = 0x9E3779B97F4A7C15
_WORD = re.compile(r'\w+')
# Most characters of a run in a document that is read in parts.
_LONGEST = 1 << 16


class Benchmarks:
  """The runs of words in benchmark texts."""

  def __init__(self, texts: Iterable[str]):
    runs_G, _ = _runs(texts)
    self._known_G = np.unique(runs_G)

  def repeated_in(self, documents: Sequence[str]) -> list[bool]:
    """Returns for each document whether it shares a run of words."""
    runs_G, owner_G = _runs(documents)
    at_G = np.searchsorted(self._known_G, runs_G)
    at_G = np.minimum(at_G, max(len(self._known_G) - 1, 0))
    repeated = np.zeros(len(documents), bool)
    if len(self._known_G):
      repeated[owner_G[self._known_G[at_G] == runs_G]] = True
    return repeated.tolist()

  def repeated_in_parts(self, parts: Iterable[str]) -> bool:
    """Tells the same of one long document, given in parts cut between words."""
    before = ''
    for part in parts:
      text = f'{before} {part}'
      if self.repeated_in([text])[0]:
        return True
      before = ' '.join(_WORD.findall(text[-_LONGEST:])[1 - _RUN :])
    return False


def find(
  directory: str, cache: str | os.PathLike[str] | None = None
) -> list[pathlib.Path]:
  """Returns the benchmark files in a directory.

  Args:
    directory: with *.jsonl or *.jsonl.gz; '': those of `benchmarks.SCORED`,
      downloaded if needed.
    cache: as for downloads.cache_dir.

  Raises:
    OSError: there are none, or a download failed.
  """
  if not directory:
    folder = benchmarks.fetch(cache=cache)
    return [folder / f'{stem}.jsonl' for stem in benchmarks.SCORED]
  found = sorted(pathlib.Path(directory).glob('*'))
  paths = [p for p in found if p.name.endswith(('.jsonl', '.jsonl.gz'))]
  if not paths:
    raise FileNotFoundError(f'no *.jsonl or *.jsonl.gz in {directory}')
  return paths


def texts(paths: Iterable[pathlib.Path]) -> Iterator[str]:
  """Yields the texts of benchmark files.

  For files of `benchmarks.SCORED`, each question with each of its answers; for
  others, every string in every record.

  Raises:
    ValueError: a file is not JSON lines.
  """
  for path in paths:
    known = path.name.partition('.')[0] in benchmarks.SCORED
    for number, row in enumerate(reading.json_lines(path), 1):
      try:
        yield from _questions(row) if known else _strings(row)
      except (KeyError, TypeError) as error:
        raise ValueError(
          f'{path}, record {number}: no question with choices ({error!r})'
        ) from error


def _questions(row: dict[str, Any]) -> Iterator[str]:
  question = row['ctx'] if 'ctx' in row else row['question']
  choices = row['endings'] if 'endings' in row else row['choices']
  if isinstance(choices, dict):
    choices = choices['text']
  yield from (f'{question} {choice}' for choice in choices)


def _strings(value: Any) -> Iterator[str]:
  """Yields all strings inside a JSON value."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list):
    for item in value:
      yield from _strings(item)


def _runs(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
  """Returns every run's hash and the index of its text."""
  hashes, owners = [], []
  for number, text in enumerate(texts):
    words = _WORD.findall(text.lower())
    if len(words) >= _RUN:
      hashes.append(np.fromiter(map(hash, words), np.int64, len(words)))
      owners.append(np.full(len(words), number))
  if not hashes:
    return np.zeros(0, np.uint64), np.zeros(0, np.int64)
  words_K = np.concatenate(hashes).view(np.uint64)
  owner_K = np.concatenate(owners)
  count = len(words_K) - _RUN + 1
  runs_G = np.zeros(count, np.uint64)
  for i in range(_RUN):
    runs_G = runs_G * np.uint64(_BASE) + words_K[i : i + count]
  inside_G = owner_K[:count] == owner_K[_RUN - 1 :]
  return runs_G[inside_G], owner_K[:count][inside_G]
