"""Rows of metrics: unrounded, each step once, half a line survived."""

import json
import pathlib
import resource

import numpy as np
import pytest

from steepest.training import metrics


def _write(workdir, first, steps):
  writer = metrics.MetricWriter(workdir, first)
  for step in steps:
    writer.write_scalars(step, {'train/loss': step / 3, 'tokens': step + 1})
  writer.close()


def test_rows_are_unrounded(tmp_path):
  value = float(np.float32(1) / np.float32(3))
  writer = metrics.MetricWriter(tmp_path, 0)
  writer.write_scalars(0, {'train/loss': value})
  writer.close()
  line = (tmp_path / 'metrics.jsonl').read_text('utf-8')
  assert json.loads(line) == {'step': 0, 'train/loss': value}


def test_a_restart_cuts_rows_back(tmp_path):
  _write(tmp_path, 0, range(10))
  _write(tmp_path, 6, range(6, 12))
  rows = metrics.read_rows(tmp_path)
  assert [row['step'] for row in rows] == list(range(12))
  assert {p.name for p in tmp_path.glob('*metrics*')} == {'metrics.jsonl'}


def test_a_restart_from_nothing_starts_anew(tmp_path):
  _write(tmp_path, 0, range(10))
  _write(tmp_path, 0, range(2))
  assert [row['step'] for row in metrics.read_rows(tmp_path)] == [0, 1]


@pytest.mark.parametrize('cut', range(1, 40, 3))
def test_half_a_line_at_the_end_is_survived(tmp_path, cut):
  _write(tmp_path, 0, range(5))
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(path.read_bytes()[:-cut])
  whole = metrics.read_rows(tmp_path)
  assert [row['step'] for row in whole] == list(range(len(whole)))
  assert 3 <= len(whole) < 5
  _write(tmp_path, 3, range(3, 6))
  rows = metrics.read_rows(tmp_path)
  assert [row['step'] for row in rows] == list(range(6))
  assert len(path.read_text('utf-8').splitlines()) == 6


def test_what_is_not_finite_is_not_written(tmp_path):
  writer = metrics.MetricWriter(tmp_path, 0)
  with pytest.raises(ValueError):
    writer.write_scalars(0, {'train/loss': float('nan')})
  writer.close()
  assert metrics.read_rows(tmp_path) == []


def test_the_writer_has_clus_methods(tmp_path):
  """So that a clu.metric_writers.MetricWriter could stand in its place."""
  import ast
  import importlib.util

  spec = importlib.util.find_spec('clu')
  interface = pathlib.Path(spec.origin).parent / 'metric_writers/interface.py'
  (writer,) = (
    node
    for node in ast.parse(interface.read_text('utf-8')).body
    if isinstance(node, ast.ClassDef) and node.name == 'MetricWriter'
  )
  theirs = {
    node.name: [a.arg for a in node.args.args]
    for node in writer.body
    if isinstance(node, ast.FunctionDef)
  }
  ours = metrics.MetricWriter(tmp_path, 0)
  ours.write_texts(0, {'note': 'text'})
  ours.write_hparams({'lr': 0.1})
  ours.flush()
  ours.close()
  for name in ('write_scalars', 'write_texts', 'write_hparams', 'flush'):
    code = getattr(metrics.MetricWriter, name).__code__
    assert list(code.co_varnames[: code.co_argcount]) == theirs[name]


def test_json_is_replaced_whole(tmp_path):
  path = tmp_path / 'summary.json'
  metrics.write_json(path, {'a': 1})
  metrics.write_json(path, {'b': 2.5})
  assert json.loads(path.read_text('utf-8')) == {'b': 2.5}
  assert [p.name for p in tmp_path.iterdir()] == ['summary.json']


class _Room:
  """A limit on the size of files that this process writes, as a full disk."""

  def __init__(self, size):
    self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
    self._size = size

  def __enter__(self):
    limits = (self._size, self._before[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)

  def __exit__(self, *_):
    resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def test_rows_wait_for_room(tmp_path):
  """None is lost or torn, and training is not held up."""
  said = []
  writer = metrics.MetricWriter(tmp_path, 0, said.append)
  with _Room(1000):
    for step in range(100):
      writer.write_scalars(step, {'train/loss': step / 3})
    with pytest.raises(OSError):
      writer.flush()
    assert len(metrics.read_rows(tmp_path)) < 50
  assert said and all('TensorBoard events are not' in s for s in said)
  writer.write_scalars(100, {'train/loss': 0.0})
  writer.close()
  assert [r['step'] for r in metrics.read_rows(tmp_path)] == list(range(101))


def test_rows_without_room_are_an_error_at_the_end(tmp_path):
  writer = metrics.MetricWriter(tmp_path, 0)
  with _Room(100):
    for step in range(10):
      writer.write_scalars(step, {'train/loss': step / 3})
    with pytest.raises(OSError):
      writer.close()
  # Half a row may be there; a restart cuts it off.
  metrics.MetricWriter(tmp_path, 1).close()
  assert [r['step'] for r in metrics.read_rows(tmp_path)] == [0]


def test_files_of_the_same_second_do_not_replace_each_other(tmp_path):
  for first in (0, 3, 6):
    _write(tmp_path, first, range(first, first + 3))
  files = list(tmp_path.glob('events.out.tfevents.*'))
  assert len(files) == 3
  assert all(path.stat().st_size > 100 for path in files)
