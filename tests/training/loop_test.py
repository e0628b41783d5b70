"""The loop on data held in memory: what is logged, evaluated, saved, when."""

import dataclasses
import gzip
import itertools
import json
import math
import shutil
import time

import jax
import numpy as np
import pytest

from steepest.training import checkpoint, loop, metrics
from steepest.training.interrupts import Stopped
from steepest.training.loop import Callbacks, Diverged, Pruned
from steepest.training.loss import cross_entropy
from steepest.training.validation import Validation


def _rows(tmp_path):
  return metrics.read_rows(tmp_path)


def test_rows_and_summary(train, tmp_path):
  summary = train()
  rows = _rows(tmp_path)
  assert [row['step'] for row in rows] == list(range(7))
  for row in rows:
    assert {'train/loss', 'lr', 'grad_norm', 'update_rms'} <= row.keys()
    assert row['tokens'] == (row['step'] + 1) * 256
  for before, row in itertools.pairwise(rows):
    recent = row['seconds'] - before['seconds']
    assert row['tokens_per_second'] * recent == pytest.approx(256)
  assert summary['train_loss'] == rows[-1]['train/loss']
  assert summary['tokens'] == 7 * 256
  assert summary['tokens_per_second'] * summary['seconds'] == pytest.approx(
    7 * 256
  )
  json.dumps(summary, allow_nan=False)


def test_rows_between_are_left_out_but_not_the_last(train, tmp_path):
  seen = []
  train(log_every=3, callbacks=Callbacks(on_row=seen.append))
  rows = _rows(tmp_path)
  assert [row['step'] for row in rows] == [0, 3, 6]
  assert [row['step'] for row in seen] == list(range(7))
  # What takes passes over the parameters is measured for what is written.
  assert all('update_rms/hidden' in row for row in rows)
  measured = [row['step'] for row in seen if 'update_rms' in row]
  assert measured == [0, 3, 6]


def test_validation_is_the_mean_over_sequences(train, tmp_path):
  summary = train(steps=4, eval_every=2, eval_sequences=20, log_every=9)
  rows = _rows(tmp_path)
  assert [row['step'] for row in rows] == [0, 1, 3]
  assert 'eval/loss' not in rows[0]
  assert all('param_norm' in row for row in rows)
  for row in rows[1:]:
    mean = (20 * row['eval/loss/a'] + 5 * row['eval/loss/b']) / 25
    assert row['eval/loss'] == pytest.approx(mean)
  assert summary['eval_loss'] == rows[-1]['eval/loss']
  assert summary['eval_loss_by_source'] == {
    'a': rows[-1]['eval/loss/a'],
    'b': rows[-1]['eval/loss/b'],
  }


def test_bits_per_byte(train, configure, make_trainer, data, tmp_path):
  """All bits over all bytes; none where a source's bytes are not known."""
  summary = train(steps=4, eval_every=2, eval_sequences=20)
  by_source = summary['eval_loss_by_source']
  bits = {k: v / math.log(2) for k, v in by_source.items()}
  assert summary['eval_bits_per_byte_by_source'] == pytest.approx(
    {'a': bits['a'] / 4, 'b': bits['b'] / 2.5}
  )
  wanted = (20 * bits['a'] + 5 * bits['b']) / (20 * 4 + 5 * 2.5)
  assert summary['eval_bits_per_byte'] == pytest.approx(wanted)
  row = _rows(tmp_path)[-1]
  assert row['eval/bits_per_byte'] == summary['eval_bits_per_byte']
  assert row['eval/bits_per_byte/b'] == pytest.approx(bits['b'] / 2.5)
  trainer = make_trainer(configure('gpt2', 'lion'))
  batches = {k: v[:1] for k, v in data.validation().items()}
  params = trainer.init().params
  for known, wanted in (({}, set()), ({'a': 4.0}, {'eval/bits_per_byte/a'})):
    losses = Validation(trainer.setup, batches, known).losses(params)
    assert {k for k in losses if 'bits' in k} == wanted


def test_validation_by_hand(train, configure, make_trainer, make_batch):
  summary = train(steps=1, eval_sequences=20)
  trainer = make_trainer(configure('gpt2', 'lion', schedule__kind='constant'))
  state, _ = trainer.step(trainer.init(), make_batch(0))
  losses = []
  for i, rows in ((0, 16), (1, 4)):
    held = make_batch(100 + i)
    logits = trainer.setup.apply(state.params, held['inputs'])
    losses += list(cross_entropy(logits, held['targets']).mean(1)[:rows])
  by_source = summary['eval_loss_by_source']
  assert by_source['a'] == pytest.approx(np.mean(losses), rel=1e-5)


def test_benchmarks_are_scored_when_due(train, tmp_path):
  calls = []

  def evaluate(params, done, last):
    calls.append((done, last))
    return {'task/acc': done / 10}

  train(
    eval_tasks='task',
    eval_tasks_every=3,
    callbacks=Callbacks(evaluate=evaluate),
  )
  assert calls == [(3, False), (6, False), (7, True)]
  scored = {
    row['step']: row['eval/task/acc']
    for row in _rows(tmp_path)
    if 'eval/task/acc' in row
  }
  assert scored == {2: 0.3, 5: 0.6, 6: 0.7}


def test_evaluation_takes_no_training_time(train):
  def evaluate(params, done, last):
    time.sleep(0.5)
    return {}

  began = time.perf_counter()
  summary = train(eval_tasks='task', callbacks=Callbacks(evaluate=evaluate))
  assert summary['eval_seconds'] >= 0.5
  assert summary['seconds'] <= time.perf_counter() - began - 0.5


def test_checkpoints_are_made_when_due_and_at_the_end(train, tmp_path):
  train(checkpoint_every=3, checkpoints_kept=9)
  kept = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert kept == [3, 6, 7]


def test_rows_are_on_disk_before_their_checkpoint(train, tmp_path, computed):
  """Cutting everything but the first checkpoint loses no earlier row."""
  train(checkpoint_every=3, checkpoints_kept=9)
  wanted = computed(tmp_path)
  for steps in (6, 7):
    shutil.rmtree(tmp_path / 'checkpoints' / str(steps))
  train(checkpoint_every=3, checkpoints_kept=9)
  assert computed(tmp_path) == wanted


def test_divergence_names_the_step(train, tmp_path):
  with pytest.raises(Diverged, match='diverged at step 0: ') as caught:
    train(hypers={'lr': np.float32('inf')})
  assert caught.value.steps == 0
  summary = caught.value.summary
  assert summary['status'] == 'diverged'
  assert summary['diverged_at_step'] == summary['steps'] == 0
  assert summary['train_loss'] is summary['eval_loss'] is None
  json.dumps(summary, allow_nan=False)
  assert _rows(tmp_path) == []


def test_a_pruned_run_is_summarised(train):
  def prune(row):
    if row['step'] == 3:
      raise Pruned('lags behind', 4)

  with pytest.raises(Pruned) as caught:
    train(callbacks=Callbacks(on_row=prune))
  summary = caught.value.summary
  assert (summary['status'], summary['steps']) == ('pruned', 4)
  assert summary['eval_loss'] is None and summary['train_loss'] > 0


def test_goodput_is_where_the_time_went(train, data, tmp_path, monkeypatch):
  """Over a stop and a restart; sleeps stand for what takes time."""

  class Slow:
    fingerprint, bytes_per_token = 'f', {}

    def train(self, first_step):
      for batch in data.train(first_step):
        time.sleep(0.2)
        yield batch

  save = checkpoint.Checkpointer.save

  def slow(*args):
    time.sleep(0.7)
    save(*args)

  monkeypatch.setattr(checkpoint.Checkpointer, 'save', slow)
  began = time.time()
  keys = {'data': Slow(), 'checkpoint_every': 4, 'eval_tasks': 'task'}

  def evaluate(params, done, last):
    time.sleep(1.0)
    return {}

  def end(row):
    # Steps 4 and 5 are lost.
    if row['step'] == 5:
      raise RuntimeError('killed')

  callbacks = Callbacks(evaluate=evaluate, on_row=end, began=began)
  with pytest.raises(RuntimeError):
    train(callbacks=callbacks, **keys)
  time.sleep(1.5)
  callbacks = dataclasses.replace(callbacks, on_row=None)
  summary = train(callbacks=callbacks, **keys)
  shares = summary['goodput']
  total = summary['seconds'] / shares['steps']
  assert total <= time.time() - began
  assert sum(shares.values()) == pytest.approx(1)
  assert all(share >= 0 for share in shares.values())
  least = {
    'waiting_for_data': 7 * 0.2,
    # A checkpoint does not hold what it takes itself.
    'saving': 0.7,
    'evaluating': 1.0,
    'restarting': 0.7 + 1.5 + 2 * 0.2,
  }
  for name, seconds in least.items():
    assert shares[name] * total >= seconds
  last = _rows(tmp_path)[-1]
  assert shares['steps'] < last['goodput'] < last['seconds'] / 1.5


def test_some_steps_are_profiled(train, tmp_path):
  """What TensorBoard reads names them."""
  train(profile_steps=(3, 5))
  [path] = tmp_path.glob('plugins/profile/*/*.xplane.pb')
  [events] = path.parent.glob('*.trace.json.gz')
  profile = jax.profiler.ProfileData.from_file(str(path))
  seen = {
    dict(event.stats)['step_num']
    for plane in profile.planes
    for line in plane.lines
    for event in line.events
    if event.name == 'train'
  }
  assert seen == {3, 4}
  json.loads(gzip.decompress(events.read_bytes()))


def test_fewer_steps_than_done_are_refused(train):
  train(checkpoint_every=3)
  with pytest.raises(ValueError, match='holds 7 steps, steps=5 asks for fewer'):
    train(checkpoint_every=3, steps=5)


def _stop(train, at, **keys):
  callbacks = Callbacks(stop=lambda steps: steps == at)
  with pytest.raises(Stopped):
    train(callbacks=callbacks, **keys)


def test_lost_checkpoints_are_missed(train, tmp_path):
  _stop(train, 5, checkpoint_every=3)
  rows = (tmp_path / 'metrics.jsonl').read_bytes()
  for path in (tmp_path / 'checkpoints').iterdir():
    shutil.rmtree(path)
  with pytest.raises(ValueError, match='of step 5 and has none now.*--restart'):
    train(checkpoint_every=3)
  assert (tmp_path / 'metrics.jsonl').read_bytes() == rows
  assert train(checkpoint_every=3, restart=True)['steps'] == 7
  assert [row['step'] for row in _rows(tmp_path)] == list(range(7))


def test_lost_rows_are_missed(train, tmp_path):
  _stop(train, 5, checkpoint_every=3)
  rows = tmp_path / 'metrics.jsonl'
  rows.write_bytes(b''.join(rows.read_bytes().splitlines(keepends=True)[:2]))
  with pytest.raises(ValueError, match='has 2 rows before step 5, 5 were'):
    train(checkpoint_every=3)
  train(checkpoint_every=3, restart=True)
  assert [row['step'] for row in _rows(tmp_path)] == [0, 1, 5, 6]
  assert '5 were written' in (tmp_path / 'events.jsonl').read_text()


def test_a_run_whose_checkpoints_count_no_rows_goes_on(train, tmp_path):
  _stop(train, 2, checkpoint_every=7)
  # As earlier versions saved it.
  saved = tmp_path / 'checkpoints' / '2'
  books = saved / 'books' / 'metadata'
  metadata = json.loads(books.read_text())
  assert metadata.pop('rows') == 2
  books.write_text(json.dumps(metadata))
  checkpoint.write_checksums(saved, checkpoint.checksums(saved))
  _stop(train, 4, checkpoint_every=7)
  assert train(checkpoint_every=7)['steps'] == 7


def test_a_signal_that_ends_the_compiler_is_a_stop(train, monkeypatch):
  def compile_step(*args):
    raise jax.errors.JaxRuntimeError('ptxas exited with non-zero error code')

  monkeypatch.setattr(loop, 'compile_step', compile_step)
  with pytest.raises(Stopped, match='stopped after 0 of 7 steps'):
    train(callbacks=Callbacks(stop=lambda steps: True))
  with pytest.raises(jax.errors.JaxRuntimeError):
    train()
