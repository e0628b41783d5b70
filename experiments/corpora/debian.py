"""Extracts 100 MB of English text from Debian packages, by source.

    apt-get update
    python experiments/corpora/debian.py --out=corpus
    python -m launch.prepare --input='corpus/*.jsonl' --tokenizer=gpt2 \\
        --out=shards

Needs apt-get and dpkg-deb, but not root: it installs nothing and runs nothing
from the packages. debian.md lists the packages, their licences and sizes.
"""

import argparse
import base64
from collections.abc import Callable, Iterator
import gzip
import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

# A document is about this many bytes of a dictionary's entries.
_ENTRIES_BYTES = 8000
_BREAKS = re.compile(r'\s*\n\s*\n\s*')


class _Package(NamedTuple):
  """A package's source name, and the function that yields its texts."""

  source: str
  texts: Callable[[pathlib.Path], Iterator[str]]


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--out', required=True, type=pathlib.Path, help='directory to write'
  )
  out = parser.parse_args().out.absolute()
  try:
    sources = fetch(out)
  except OSError as error:
    sys.exit(f'error: {error}')
  for source, counts in sources.items():
    print(
      f'{source}: {counts["documents"]:,} documents, {counts["bytes"]:,} bytes'
    )
  print(out)


def fetch(out: pathlib.Path) -> dict[str, dict[str, int]]:
  """Writes a directory of `<source>.jsonl`, unless it is complete already.

  Its packages.json holds the packages' versions and the counts by source.

  Returns:
    Documents and bytes by source.

  Raises:
    OSError: this is not Debian, or a package could not be downloaded.
  """
  about = out / 'packages.json'
  if about.exists():
    return json.loads(about.read_text('utf-8'))['sources']
  part = out.with_name(f'.{out.name}.{os.getpid()}')
  part.mkdir(parents=True)
  versions: dict[str, str] = {}
  sources: dict[str, dict[str, int]] = {}
  try:
    for name, package in _PACKAGES.items():
      print(name, file=sys.stderr)
      with tempfile.TemporaryDirectory(dir=part) as folder:
        tree = pathlib.Path(folder)
        versions[name] = _unpack(name, tree)
        counts = sources[package.source] = {'documents': 0, 'bytes': 0}
        with (part / f'{package.source}.jsonl').open('w') as file:
          for text in package.texts(tree):
            if not text.strip():
              continue
            record = {'text': text, 'source': package.source}
            file.write(json.dumps(record) + '\n')
            counts['documents'] += 1
            counts['bytes'] += len(text.encode())
    text = json.dumps({'packages': versions, 'sources': sources}, indent=1)
    (part / about.name).write_text(text + '\n', 'utf-8')
    os.replace(part, out)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return sources


def _unpack(name: str, folder: pathlib.Path) -> str:
  """Downloads and unpacks a package; returns its version."""
  _run(['apt-get', 'download', '-qq', name], folder)
  (archive,) = folder.glob('*.deb')
  _run(['dpkg-deb', '-x', archive.name, 'tree'], folder)
  version = _run(['dpkg-deb', '-f', archive.name, 'Version'], folder)
  archive.unlink()
  return version.strip()


def _run(command: list[str], folder: pathlib.Path) -> str:
  try:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  except FileNotFoundError as error:
    raise OSError(
      f'{command[0]} is missing: this corpus is made on Debian or Ubuntu'
    ) from error
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['no message']
    raise OSError(
      f'{" ".join(command)} failed ({lines[-1]}): run apt-get update first'
    )
  return done.stdout


def _files(tree: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  """Returns the matching files, except links that leave the package."""
  top = tree.resolve()
  found = sorted(tree.rglob(pattern))
  return [path for path in found if path.resolve().is_relative_to(top)]


def _plain(pattern: str) -> Callable[[pathlib.Path], Iterator[str]]:
  """Returns a function that yields every matching file as one text."""

  def texts(tree: pathlib.Path) -> Iterator[str]:
    for path in _files(tree, pattern):
      if path.is_file():
        yield path.read_bytes().decode(errors='replace')

  return texts


def _pages(tree: pathlib.Path) -> Iterator[str]:
  """Yields the text of each HTML page."""
  for path in _files(tree, '*.html'):
    page = _Page()
    page.feed(path.read_bytes().decode(errors='replace'))
    page.close()
    yield _BREAKS.sub('\n\n', ''.join(page.pieces)).strip()


class _Page(html.parser.HTMLParser):
  """Collects the text that a browser shows."""

  _HIDDEN = ('script', 'style', 'title')
  _BLOCKS = ('p', 'div', 'br', 'li', 'tr', 'blockquote', 'h1', 'h2', 'h3')

  def __init__(self) -> None:
    super().__init__()
    self.pieces: list[str] = []
    self._hidden = 0

  def handle_starttag(
    self, tag: str, attrs: list[tuple[str, str | None]]
  ) -> None:
    del attrs
    self._hidden += tag in self._HIDDEN
    if tag in self._BLOCKS:
      self.pieces.append('\n' if tag == 'br' else '\n\n')

  def handle_endtag(self, tag: str) -> None:
    self._hidden = max(self._hidden - (tag in self._HIDDEN), 0)

  def handle_data(self, data: str) -> None:
    if not self._hidden:
      # Line breaks in HTML source mean nothing.
      self.pieces.append(re.sub(r'\s+', ' ', data))


def _entries(tree: pathlib.Path) -> Iterator[str]:
  """Yields a dictd dictionary in pieces of whole entries."""
  for index in _files(tree, '*.index'):
    # A .dz file is gzip with an index for random access.
    content = gzip.decompress(index.with_suffix('.dict.dz').read_bytes())
    places: set[tuple[int, int]] = set()
    for line in index.read_text('utf-8').splitlines():
      word, *place = line.split('\t')
      # Words that begin with 00 describe the dictionary itself.
      if not word.startswith('00'):
        places.add((_number(place[0]), _number(place[1])))
    piece: list[bytes] = []
    for start, size in sorted(places):
      piece.append(content[start : start + size])
      if sum(map(len, piece)) >= _ENTRIES_BYTES:
        yield b''.join(piece).decode(errors='replace')
        piece = []
    yield b''.join(piece).decode(errors='replace')


def _number(text: str) -> int:
  """Parses a dictd number: base64 digits, most significant first."""
  padded = 'A' * (-len(text) % 4) + text
  return int.from_bytes(base64.b64decode(padded), 'big')


_PACKAGES = {
  'linux-doc-6.1': _Package('linux', _plain('_sources/**/*.rst.txt')),
  'python3.11-doc': _Package('python', _plain('_sources/**/*.rst.txt')),
  'perl-doc': _Package('perl', _plain('*.pod')),
  'dict-gcide': _Package('dictionary', _entries),
  'dict-foldoc': _Package('computing', _entries),
  'anarchism': _Package('essays', _pages),
}


if __name__ == '__main__':
  main()
