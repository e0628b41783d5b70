"""Texts out of a package's files, made up as the packages have them."""

import base64
import gzip
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

_SCRIPT = (
  pathlib.Path(__file__).parents[2] / 'experiments' / 'corpora' / 'debian.py'
)


@pytest.fixture
def debian():
  """The script, which belongs to no package."""
  spec = importlib.util.spec_from_file_location('debian', _SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


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


def test_texts_are_found_in_the_packages(debian, packages, tmp_path):
  out = tmp_path / 'corpus'
  held = debian.fetch(out)
  assert len(held) == 6
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
  versions = json.loads((out / 'packages.json').read_text())['packages']
  assert versions['anarchism'] == '1.0-1' and len(versions) == 6
  count = len(packages)
  assert debian.fetch(out) == held and len(packages) == count
  assert [p.name for p in tmp_path.iterdir()] == ['corpus']


def test_failures_are_one_line_and_leave_nothing(tmp_path):
  """As a user meets them: no package lists, or no Debian."""
  tools = tmp_path / 'bin'
  tools.mkdir()
  for script, message in (
    ('echo E: no package >&2; exit 100', 'no package): run apt-get update'),
    ('', 'apt-get is missing'),
  ):
    (tools / 'apt-get').write_text(f'#!/bin/sh\n{script}\n')
    (tools / 'apt-get').chmod(0o755)
    if not script:
      (tools / 'apt-get').unlink()
    done = subprocess.run(
      [sys.executable, _SCRIPT, f'--out={tmp_path / "corpus"}'],
      capture_output=True,
      text=True,
      env={'PATH': str(tools)},
    )
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith('error: ') and message in line
    assert [p.name for p in tmp_path.iterdir()] == ['bin']
