"""The order of the data: complete, resumable, the same on any processes."""

import collections
import itertools

from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as st_numpy
import numpy as np
import pytest

from steepest.data import pipeline, tokenizers
from steepest.experiments import base

_PROPERTY = settings(
  max_examples=25,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _open_flat(tmp_path, windows, context, **changed):
  """Opens a file whose token i is i, so that a window tells its number."""
  path = tmp_path / f'{windows}x{context}.npy'
  if not path.exists():
    np.save(path, np.arange(windows * context + 1, dtype=np.uint32))
  config = base.get_config().unlock().data
  config.source = f'flat:{path}'
  names = ('source', 'shuffle', 'epochs', 'mixture', 'mask_documents')
  for name in names:
    if name in changed:
      config[name] = changed.pop(name)
  arguments = {'seed': 0, 'eval_sequences': 0, **changed}
  return pipeline.open_data(config, context=context, **arguments)


def test_unshuffled_windows_follow_the_formula(tmp_path):
  data = _open_flat(tmp_path, 60, 8, batch_size=4, steps=15, shuffle=False)
  tokens = np.arange(60 * 8 + 1)
  for step, row in itertools.product(range(15), range(4)):
    i = step * 4 + row
    batch = data.batch(step)
    np.testing.assert_array_equal(
      batch['inputs'][row], tokens[i * 8 : i * 8 + 8]
    )
    np.testing.assert_array_equal(
      batch['targets'][row], tokens[i * 8 + 1 : i * 8 + 9]
    )
    assert batch['inputs'].dtype == batch['targets'].dtype == np.int32


@_PROPERTY
@given(
  processes=st.sampled_from([1, 2, 4, 8]),
  first=st.integers(0, 10),
  epochs=st.integers(1, 3),
  seed=st.integers(0, 2**31),
)
def test_any_process_count_and_start_give_the_same_batches(
  tmp_path, processes, first, epochs, seed
):
  run = {'batch_size': 8, 'steps': 10, 'epochs': epochs, 'seed': seed}
  whole = _open_flat(tmp_path, 80, 4, **run)
  shares = [
    _open_flat(tmp_path, 80, 4, rows=range(8)[p::processes], **run).train(first)
    for p in range(processes)
  ]
  steps = range(first, 10)
  for step, *parts in zip(steps, *shares, strict=True):
    for name, global_BxT in whole.batch(step).items():
      for p, part in enumerate(parts):
        np.testing.assert_array_equal(part[name], global_BxT[p::processes])


def test_a_longer_run_begins_the_same_and_another_seed_does_not(tmp_path):
  short, long, other = (
    _open_flat(tmp_path, 100, 4, batch_size=5, steps=steps, seed=seed)
    for steps, seed in ((3, 0), (20, 0), (20, 1))
  )
  assert short.fingerprint == long.fingerprint == other.fingerprint
  first, same, differ = (
    np.concatenate([data.batch(step)['inputs'] for step in range(3)])
    for data in (short, long, other)
  )
  np.testing.assert_array_equal(first, same)
  assert not np.array_equal(first, differ)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'steps': 50}, 'holds 100 windows, the run needs 300: .* to 3 '),
    ({'vocab_size': 400}, 'model.vocab_size to 401'),
    ({'epochs': 0}, 'data.epochs=0'),
    ({'mixture': 'wikipedia:1'}, 'unknown source'),
    ({'mask_documents': True}, 'does not mark the ends of documents'),
    ({'source': ''}, 'shards:DIR or flat:FILE'),
    ({'source': 'corpus'}, 'shards:DIR or flat:FILE'),
    ({'source': 'flat:'}, 'shards:DIR or flat:FILE'),
  ],
)
def test_what_does_not_fit_is_refused(tmp_path, changed, message):
  run = {'batch_size': 6, 'steps': 2, **changed}
  with pytest.raises(ValueError, match=message):
    _open_flat(tmp_path, 100, 4, **run)


def test_flat_files_have_neither_validation_nor_tokenizer(tmp_path):
  run = {'batch_size': 6, 'steps': 2, 'vocab_size': 401}
  data = _open_flat(tmp_path, 100, 4, **run)
  assert data.validation() == {} and data.tokenizer_dir is None
  assert list(data.train(2)) == []
  with pytest.raises(IndexError):
    data.batch(2)
  _open_flat(tmp_path, 100, 4, batch_size=6, steps=50, epochs=3)


def _open(config, **changed):
  arguments = {
    'context': 64,
    'batch_size': 4,
    'steps': 5,
    'seed': 0,
    'eval_sequences': 6,
    **changed,
  }
  return pipeline.open_data(config, **arguments)


def test_a_mixture_takes_its_share_of_each_source(shards_dir, data_config):
  data_config.source = f'shards:{shards_dir}'
  alone = {}
  for name in ('email', 'http', 'json'):
    data_config.mixture = f'{name}:1'
    data = _open(data_config, steps=8)
    assert data.sources == (name,)
    rows = np.concatenate([b['inputs'] for b in data.train(0)])
    alone[name] = [row.tobytes() for row in rows]
  data_config.mixture = 'json:1,email:2.5,http:0.5'
  data = _open(data_config, steps=8)
  assert set(data.sources) == set(alone)
  rows = np.concatenate([b['inputs'] for b in data.train(0)])
  counts = collections.Counter()
  for row in rows:
    # A source's own order does not depend on what it is mixed with.
    (name,) = (n for n in alone if alone[n][counts[n]] == row.tobytes())
    counts[name] += 1
  assert counts == {'json': 8, 'email': 20, 'http': 4}


def test_all_text_is_read_when_all_is_asked_for(shards_dir, data_config):
  data_config.source = f'shards:{shards_dir}'
  streams = [_stream(shards_dir, s, 'train') for s in ('email', 'http', 'json')]
  windows = sum(len(stream) // 64 for stream in streams)
  data = _open(data_config, batch_size=1, steps=windows)
  read = collections.Counter(b['inputs'].tobytes() for b in data.train(0))
  expected = collections.Counter(
    stream[i : i + 64].tobytes()
    for stream in streams
    for i in range(0, len(stream) - 64, 64)
  )
  assert read == expected
  with pytest.raises(ValueError, match='raise data.epochs to 2'):
    _open(data_config, batch_size=1, steps=windows + 3)


def _stream(directory, source, split):
  """Joins the records of a source, read without the pipeline."""
  from array_record.python import array_record_data_source

  from steepest.data import manifest as manifests

  held = manifests.load(directory)
  paths = [str(directory / s.name) for s in held.select(split, source)]
  records = [
    np.frombuffer(r, '<u2').astype(np.int32)
    for r in array_record_data_source.ArrayRecordDataSource(paths)
  ]
  for before, after in itertools.pairwise(records):
    assert before[-1] == after[0]
  return np.concatenate([r[:-1] for r in records] + [records[-1][-1:]])


@pytest.mark.parametrize('processes', [1, 2])
def test_validation_is_the_start_of_each_source(
  shards_dir, data_config, processes
):
  data_config.source = f'shards:{shards_dir}'
  shares = [
    _open(data_config, rows=rows).validation()
    for rows in np.array_split(range(4), processes)
  ]
  assert set(shares[0]) == {'email', 'http', 'json'}
  for source in shares[0]:
    batches = list(zip(*(share[source] for share in shares)))
    rows = np.concatenate([b['inputs'] for parts in batches for b in parts])
    mask = np.concatenate([b['mask'] for parts in batches for b in parts])
    assert mask.tolist() == [1.0] * 6 + [0.0] * 2
    stream = _stream(shards_dir, source, 'validation')
    np.testing.assert_array_equal(rows[:6].ravel(), stream[: 6 * 64])
  assert _open(data_config, eval_sequences=0).validation() == {}


def test_fingerprint_follows_the_data_alone(shards_dir, data_config):
  data_config.source = f'shards:{shards_dir}'
  first = _open(data_config)
  same = _open(data_config, batch_size=2, steps=9, seed=4, eval_sequences=1)
  assert first.fingerprint == same.fingerprint
  assert first.fingerprint != _open(data_config, context=32).fingerprint
  data_config.mixture = 'json:1'
  assert first.fingerprint != _open(data_config).fingerprint


def test_masked_batches_carry_segments_of_the_inputs(shards_dir, data_config):
  data_config.source = f'shards:{shards_dir}'
  plain = _open(data_config)
  assert set(plain.batch(0)) == {'inputs', 'targets'}
  data_config.mask_documents = True
  masked = _open(data_config)
  assert masked.fingerprint != plain.fingerprint
  eos_id = tokenizers.load(f'hf:{shards_dir}').eos_id
  most = 0
  for step in range(4):
    batch = masked.batch(step)
    for name in ('inputs', 'targets'):
      np.testing.assert_array_equal(batch[name], plain.batch(step)[name])
    segment_ids, positions = pipeline.segments(batch['inputs'], eos_id)
    most = max(most, segment_ids.max())
    np.testing.assert_array_equal(batch['segment_ids'], segment_ids)
    np.testing.assert_array_equal(batch['positions'], positions)
  assert most > 1
  validation = next(iter(masked.validation().values()))[0]
  assert set(validation) == {*batch, 'mask'}


def test_bytes_of_a_token_are_those_of_the_validation_text(
  shards_dir, data_config
):
  data_config.source = f'shards:{shards_dir}'
  tokenizer = tokenizers.load(f'hf:{shards_dir}')
  held = _open(data_config).bytes_per_token
  assert set(held) == {'email', 'http', 'json'}
  for source, ratio in held.items():
    stream = _stream(shards_dir, source, 'validation')
    text = tokenizer.decode(stream.tolist(), skip_special_tokens=True)
    # The last document is cut where the last record ends.
    assert len(text.encode()) / len(stream) == pytest.approx(ratio, rel=0.03)


@given(
  st_numpy.arrays(
    np.int32,
    st.tuples(st.integers(1, 4), st.integers(1, 20)),
    elements=st.integers(0, 3),
  ),
  st.integers(0, 3),
)
def test_segments_equal_a_walk_over_the_tokens(tokens_BxT, eos_id):
  segment_ids_BxT, positions_BxT = pipeline.segments(tokens_BxT, eos_id)
  assert segment_ids_BxT.dtype == positions_BxT.dtype == np.int32
  for tokens, ids, positions in zip(
    tokens_BxT.tolist(), segment_ids_BxT.tolist(), positions_BxT.tolist()
  ):
    segment, position = 1, 0
    for token, found_id, found_position in zip(tokens, ids, positions):
      assert (found_id, found_position) == (segment, position)
      position += 1
      if token == eos_id:
        segment, position = segment + 1, 0
