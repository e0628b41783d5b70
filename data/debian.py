"""Some 100 MB of English text out of Debian packages, by source."""

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
import tempfile
from typing import NamedTuple

from steepest.data import files

# Entries of a dictionary that make a document, in bytes.
_PAGE = 8000
_BREAKS = re.compile(r'\s*\n\s*\n\s*')


class _Package(NamedTuple):
  """A package and how texts are found in its files."""

  source: str
  texts: Callable[[pathlib.Path], Iterator[str]]


def fetch(
  out: pathlib.Path, advance: Callable[[str], None]
) -> dict[str, dict[str, int]]:
  """Writes a directory of `<source>.jsonl`, or finds that it is there.

  packages.json in it tells the packages' versions and what each source has.

  Args:
    out: directory to write.
    advance: is called with the name of each package.

  Returns:
    Documents and bytes by source.

  Raises:
    OSError: this is no Debian, or a package could not be had.
  """
  about = out / 'packages.json'
  if about.exists():
    return json.loads(about.read_text('utf-8'))['sources']
  part = out.with_name(f'.{out.name}.{os.getpid()}')
  part.mkdir(parents=True)
  versions: dict[str, str] = {}
  held: dict[str, dict[str, int]] = {}
  try:
    for name, package in _PACKAGES.items():
      advance(name)
      with tempfile.TemporaryDirectory(dir=part) as folder:
        tree = pathlib.Path(folder)
        versions[name] = _unpack(name, tree)
        counts = held.setdefault(package.source, {'documents': 0, 'bytes': 0})
        with (part / f'{package.source}.jsonl').open('a') as file:
          for text in package.texts(tree):
            if not text.strip():
              continue
            record = {'text': text, 'source': package.source}
            file.write(json.dumps(record) + '\n')
            counts['documents'] += 1
            counts['bytes'] += len(text.encode())
    text = json.dumps({'packages': versions, 'sources': held}, indent=1)
    files.write(part / about.name, [(text + '\n').encode()])
    os.replace(part, out)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return held


def _unpack(name: str, folder: pathlib.Path) -> str:
  """Downloads and unpacks a package; nothing of it is installed or run."""
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
  """Returns what matches in a package; what links lead out to is not in it."""
  top = tree.resolve()
  found = sorted(tree.rglob(pattern))
  return [path for path in found if path.resolve().is_relative_to(top)]


def _plain(pattern: str) -> Callable[[pathlib.Path], Iterator[str]]:
  """Returns what yields the text of each file that matches, whole."""

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
  """Collects what a browser shows of a page."""

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
      # Lines are broken anywhere in the source of a page.
      self.pieces.append(re.sub(r'\s+', ' ', data))


def _entries(tree: pathlib.Path) -> Iterator[str]:
  """Yields the entries of a dictd dictionary, some pages of them at a time."""
  for index in _files(tree, '*.index'):
    # A .dz is a gzip file that can be read from within, too.
    content = gzip.decompress(index.with_suffix('.dict.dz').read_bytes())
    places: set[tuple[int, int]] = set()
    for line in index.read_text('utf-8').splitlines():
      word, *place = line.split('\t')
      # What describes the dictionary itself.
      if not word.startswith('00'):
        places.add((_number(place[0]), _number(place[1])))
    page: list[bytes] = []
    for start, size in sorted(places):
      page.append(content[start : start + size])
      if sum(map(len, page)) >= _PAGE:
        yield b''.join(page).decode(errors='replace')
        page = []
    yield b''.join(page).decode(errors='replace')


def _number(text: str) -> int:
  """Reads dictd's numbers: base64's digits, the highest first."""
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
