"""Texts out of a package's files, made up as the packages have them."""

import base64
import gzip
import json
import pathlib
import subprocess

import pytest

from steepest.data import debian


def _tree(folder: pathlib.Path) -> None:
  """Writes what the packages hold, all in one tree."""
  doc = folder / 'usr/share/doc/some'
  sources = doc / 'html/_sources/admin'
  sources.mkdir(parents=True)
  (sources / 'b.rst.txt').write_text('Title B\n=======\n')
  (sources / 'a.rst.txt').write_text('Title A\n=======\n')
  # Of the machine, not of the package.
  secret = folder.parent.parent / 'secret.rst.txt'
  secret.write_text('secret\n')
  (sources / 'c.rst.txt').symlink_to(secret)
  (doc / 'perl.pod').write_text('=head1 NAME\n')
  (doc / 'html' / 'page.html').write_text(
    '<html><head><title>no</title><style>p {}</style></head><body>'
    '<h1>One &amp; two</h1><p>A line\nthat goes <b>on</b>.</p><br>'
    '<script>var x = "<p>no</p>";</script><p>End.</p></body></html>'
  )
  entries = [b'00-database-info\n  about\n', b'Apple\n  A fruit.\n', b'Bee\n']
  dictd = folder / 'usr/share/dictd'
  dictd.mkdir(parents=True)
  (dictd / 'some.dict.dz').write_bytes(gzip.compress(b''.join(entries)))
  lines, at = [], 0
  for words, entry in zip(
    (('00-info',), ('apple', 'fruit'), ('bee',)), entries
  ):
    lines += [f'{w}\t{_digits(at)}\t{_digits(len(entry))}' for w in words]
    at += len(entry)
  (dictd / 'some.index').write_text('\n'.join(lines) + '\n')


def _digits(number: int) -> str:
  """Writes a number as dictd does."""
  text = base64.b64encode(number.to_bytes(3, 'big')).decode()
  return text.lstrip('A') or 'A'


@pytest.fixture
def packages(monkeypatch):
  """Has the package tools give the tree above."""
  commands = []

  def run(command, cwd, **named):
    commands.append(command)
    if command[0] == 'apt-get':
      (cwd / f'{command[-1]}_1_all.deb').touch()
    if command[1] == '-x':
      _tree(cwd / 'tree')
    return subprocess.CompletedProcess(command, 0, '1.0-1\n', '')

  monkeypatch.setattr('subprocess.run', run)
  return commands


def test_texts_are_found_in_the_packages(packages, tmp_path):
  out = tmp_path / 'corpus'
  seen = []
  held = debian.fetch(out, seen.append)
  assert 'anarchism' in seen and len(seen) == len(held) == 6
  texts = {
    path.stem: [json.loads(line) for line in path.read_text().splitlines()]
    for path in out.glob('*.jsonl')
  }
  assert set(texts) == set(held)
  for source, records in texts.items():
    assert {r['source'] for r in records} == {source}
    assert held[source] == {
      'documents': len(records),
      'bytes': sum(len(r['text'].encode()) for r in records),
    }
  assert [r['text'] for r in texts['linux']] == [
    'Title A\n=======\n',
    'Title B\n=======\n',
  ]
  assert texts['perl'][0]['text'] == '=head1 NAME\n'
  assert texts['essays'][0]['text'] == (
    'One & two\n\nA line that goes on.\n\nEnd.'
  )
  assert [r['text'] for r in texts['dictionary']] == [
    'Apple\n  A fruit.\nBee\n'
  ]
  assert json.loads((out / 'packages.json').read_text())['packages'] == (
    dict.fromkeys(seen, '1.0-1')
  )
  count = len(packages)
  assert debian.fetch(out, seen.append) == held and len(packages) == count
  assert [p.name for p in tmp_path.iterdir()] == ['corpus']


def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch):
  def run(command, **named):
    return subprocess.CompletedProcess(command, 100, '', 'E: no package\n')

  monkeypatch.setattr('subprocess.run', run)
  with pytest.raises(OSError, match='no package.: run apt-get update first'):
    debian.fetch(tmp_path / 'corpus', lambda name: None)
  assert not list(tmp_path.iterdir())

  def missing(command, **named):
    raise FileNotFoundError(command[0])

  monkeypatch.setattr('subprocess.run', missing)
  with pytest.raises(OSError, match='apt-get is missing'):
    debian.fetch(tmp_path / 'corpus', lambda name: None)
