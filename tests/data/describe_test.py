"""The description of a directory of shards."""

import ast
import dataclasses
import io
import json
import shutil

from etils import epath
import pytest

from steepest.data import describe, manifest as manifests
from steepest.data.terminal import Console


def _described(directory):
  out = io.StringIO()
  describe.describe(directory, Console(file=out, width=200))
  return out.getvalue()


def test_the_manifest_and_some_text_are_shown(shards_dir, corpus, tmp_path):
  copy = shutil.copytree(shards_dir, tmp_path / 'copy')
  manifest = dataclasses.replace(
    manifests.load(copy), contaminated={'json': 3}, notes=['a [note]']
  )
  manifests.save(manifest, copy)
  shown = _described(copy)
  for source, held in manifest.sources.items():
    for wanted in (source, f'{held.documents:,}', f'{held.tokens:,}'):
      assert wanted in shown
  assert '3 documents repeat a benchmark' in shown and 'a [note]' in shown
  # Windows are quoted as Python does; they are pieces of documents.
  texts = [json.loads(line)['text'] for line in corpus.read_text().splitlines()]
  windows = [
    ast.literal_eval(line)
    for line in shown.splitlines()
    if line[:1] in ('"', "'")
  ]
  assert len(windows) == len(manifest.sources)
  for window in windows:
    for piece in window.split('<|endoftext|>'):
      assert any(piece in text for text in texts)


def test_what_is_not_whole_is_not_shown(shards_dir, tmp_path):
  with pytest.raises(FileNotFoundError, match='no manifest.json'):
    _described(epath.Path(tmp_path))
  copy = shutil.copytree(shards_dir, tmp_path / 'copy')
  next(copy.glob('train-*')).write_bytes(b'')
  with pytest.raises(ValueError, match='has 0 bytes'):
    _described(copy)
