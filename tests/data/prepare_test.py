"""Preparation from end to end: the shards are the documents, no more."""

import collections
import dataclasses
import gzip
import hashlib
import itertools
import json
import pathlib

from array_record.python import array_record_data_source
import numpy as np
import pytest

from steepest.data import manifest as manifests, prepare, tokenizers
from steepest.data.preparing import documents, parsing


def _streams(directory: pathlib.Path) -> dict[tuple[str, str], np.ndarray]:
  """Returns the tokens of every split and source, read without data/."""
  manifest = manifests.load(directory)
  records = collections.defaultdict(list)
  for shard in manifest.shards:
    path = directory / shard.name
    content = path.read_bytes()
    assert len(content) == shard.bytes
    assert hashlib.sha256(content).hexdigest() == shard.sha256
    read = array_record_data_source.ArrayRecordDataSource([str(path)])
    held = [np.frombuffer(r, manifest.dtype) for r in read]
    assert len(held) == shard.records and shard.tokens == 2048 * shard.records
    records[shard.split, shard.source] += held
  for held in records.values():
    assert all(len(r) == 2049 for r in held)
    assert all(a[-1] == b[0] for a, b in itertools.pairwise(held))
  return {
    key: np.concatenate([r[:-1] for r in held] + [held[-1][-1:]])
    for key, held in records.items()
  }


def _documents(stream: np.ndarray, eos: int) -> list[tuple[int, ...]]:
  """Cuts a stream after each end of text; the rest may be half a document."""
  ends = np.flatnonzero(stream == eos) + 1
  return [tuple(d.tolist()) for d in np.split(stream, ends) if len(d)]


def _check(directory: pathlib.Path, patterns: str) -> manifests.Manifest:
  """Compares the streams with a plain encoding of the input."""
  manifest = manifests.load(directory)
  tokenizer = tokenizers.load(f'hf:{directory}')
  expected = collections.defaultdict(set)
  texts = {}
  for item in documents.read(documents.find(patterns)):
    if isinstance(item, parsing.Document):
      texts.setdefault(item.text, item.source)
  for text, source in texts.items():
    ids = [*tokenizer.encode(text), tokenizer.eos_id]
    expected[source].add(tuple(ids))
  assert manifest.documents == len(texts)
  assert manifest.tokens == sum(len(d) for s in expected.values() for d in s)
  assert manifest.tokens == sum(s.tokens for s in manifest.sources.values())
  stored = sum(s.tokens for s in manifest.shards)
  assert manifest.unused_tokens == manifest.tokens - stored
  streams = _streams(directory)
  for source, held in manifest.sources.items():
    if source not in manifest.sources_of('train'):
      continue
    whole = []
    for split in ('train', 'validation'):
      if (split, source) not in streams:
        continue
      *full, last = _documents(streams[split, source], tokenizer.eos_id)
      assert set(full) <= expected[source]
      assert any(d[: len(last)] == last for d in expected[source])
      whole += full
    assert len(whole) == len(set(whole))
    begun = [s for s in manifest.shards if s.source == source]
    assert sum(s.documents for s in begun) == held.documents
    # What is left over is less than a record for each split.
    assert (
      held.tokens - sum(len(d) for d in whole)
      < 2 * 2048 + max(map(len, expected[source])) * 2
    )
  return manifest


def test_shards_are_the_encoded_documents(shards_dir, corpus):
  manifest = _check(shards_dir, str(corpus))
  assert manifest.notes == [] and manifest.rejected == 0
  assert manifest.sources_of('train') == ['email', 'http', 'json']
  assert manifest.sources_of('validation') == ['email', 'http', 'json']
  assert len(manifest.select('train', 'email')) > 1


def test_validation_is_some_documents_of_each_source(shards_dir):
  manifest = manifests.load(shards_dir)
  streams = _streams(shards_dir)
  for source, held in manifest.sources.items():
    kept = len(streams['validation', source])
    assert 2048 < kept <= 0.2 * held.tokens
    eos = tokenizers.load(f'hf:{shards_dir}').eos_id
    train, validation = (
      set(_documents(streams[split, source], eos))
      for split in ('train', 'validation')
    )
    assert not train & validation


def _options(corpus, out, **changed):
  options = prepare.Options(
    str(corpus),
    'bpe-train:512',
    out,
    validation_fraction=0.2,
    shard_tokens=20 * 2048,
  )
  return dataclasses.replace(options, **changed)


def _bytes(directory):
  return {p.name: p.read_bytes() for p in directory.iterdir()}


def test_the_same_arguments_give_the_same_bytes(
  shards_dir, corpus, tmp_path, console
):
  prepare.prepare(_options(corpus, tmp_path / 'a'), console)
  assert _bytes(tmp_path / 'a') == _bytes(shards_dir)
  prepare.prepare(_options(corpus, tmp_path / 'b', seed=1), console)
  a, b = (_streams(tmp_path / name) for name in 'ab')
  assert a.keys() == b.keys()
  eos = tokenizers.load(f'hf:{shards_dir}').eos_id
  for key in a:
    # Another order of the same documents; the last may be cut elsewhere.
    assert not np.array_equal(a[key], b[key])
    ends_a, ends_b = (_documents(s[key], eos)[:-1] for s in (a, b))
    assert len(set(ends_a) ^ set(ends_b)) < 40


def test_a_finished_directory_is_left_alone(corpus, tmp_path, console):
  options = _options(corpus, tmp_path / 'out')
  prepare.prepare(options, console)
  before = {p: p.stat().st_mtime_ns for p in options.out.iterdir()}
  # As if it had been killed while it cleaned up.
  (tmp_path / '.out.part' / 'chunks').mkdir(parents=True)
  prepare.prepare(options, console)
  assert before == {p: p.stat().st_mtime_ns for p in options.out.iterdir()}
  for changed in ({'seed': 1}, {'tokenizer': 'bpe-train:300'}):
    with pytest.raises(FileExistsError, match=next(iter(changed))):
      prepare.prepare(dataclasses.replace(options, **changed), console)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['out']


def _write(path, texts):
  path.write_text(''.join(json.dumps({'text': t}) + '\n' for t in texts))


def test_duplicates_are_dropped_over_all_files(tmp_path, console):
  texts = [f'document {i} ' * 40 for i in range(100)]
  _write(tmp_path / 'a.jsonl', texts)
  _write(tmp_path / 'b.jsonl', [*texts[:30], *[t + '!' for t in texts]])
  manifest = prepare.prepare(
    _options(tmp_path / '*.jsonl', tmp_path / 'out'), console
  )
  assert (manifest.documents, manifest.duplicates) == (200, 30)
  assert manifest.sources['a'].documents == 100
  assert manifest.sources['b'].documents == 100
  assert manifest.sources['a'].bytes == sum(len(t) for t in texts)


def test_bad_lines_are_kept_apart(tmp_path, console):
  texts = [f'document {i} ' * 40 for i in range(100)]
  _write(tmp_path / 'a.jsonl', texts)
  with (tmp_path / 'a.jsonl').open('a') as file:
    file.write('{"text": \n' * 10)
  manifest = prepare.prepare(
    _options(tmp_path / 'a.jsonl', tmp_path / 'out'), console
  )
  assert (manifest.documents, manifest.rejected) == (100, 10)
  rejects = [
    json.loads(line)
    for line in (tmp_path / 'out' / 'rejects.jsonl').read_text().splitlines()
  ]
  assert [r['line'] for r in rejects] == list(range(101, 111))
  assert rejects[0]['quoted'].startswith('b\'{"text"')
  with (tmp_path / 'a.jsonl').open('a') as file:
    file.write('{"text": \n')
  with pytest.raises(ValueError, match='11 of 111 lines .* line 101 of'):
    prepare.prepare(_options(tmp_path / 'a.jsonl', tmp_path / 'more'), console)
  options = _options(tmp_path / 'a.jsonl', tmp_path / 'more', text_field='body')
  with pytest.raises(ValueError, match='no `body`.*; --text_field=KEY names'):
    prepare.prepare(options, console)
  assert not (tmp_path / 'more').exists()


def test_small_sources_are_told_of(tmp_path, console):
  _write(tmp_path / 'large.jsonl', [f'text {i} ' * 90 for i in range(99)])
  for name in 'abc':
    _write(tmp_path / f'{name}.jsonl', [f'{name} {i} ' * 99 for i in range(5)])
  manifest = prepare.prepare(
    _options(tmp_path / '*.jsonl', tmp_path / 'out'), console
  )
  assert set(manifest.sources) == {'a', 'b', 'c', 'large'}
  assert manifest.sources_of('train') == ['large', 'small sources']
  assert manifest.sources_of('validation') == ['large']
  pooled, no_validation = manifest.notes
  assert "3 sources with fewer than 2049 tokens, such as 'a'" in pooled
  assert "'small sources' gives no validation" in no_validation
  _write(tmp_path / 'tiny.jsonl', ['a few words'])
  with pytest.raises(ValueError, match='less than a record of 2049 tokens'):
    prepare.prepare(
      _options(tmp_path / 'tiny.jsonl', tmp_path / 'tiny'), console
    )


def test_large_vocabularies_take_four_bytes():
  assert manifests.token_dtype(1 << 16) == np.dtype('<u2')
  assert manifests.token_dtype((1 << 16) + 1) == np.dtype('<u4')


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'validation_fraction': 1.0}, 'a fraction of'),
    ({'validation_tokens': -1}, '0 or more'),
    ({'shard_tokens': 100}, 'a record alone has 2048'),
    ({'max_rejected': 2.0}, 'a fraction of'),
    ({'tokenizer': 'bpe-train:x'}, 'write bpe-train:N'),
    ({'tokenizer': 'bpe-train:9'}, 'too small'),
    ({'decontaminate': 'yes'}, 'write drop or report'),
    ({'decontaminate_data': 'x'}, 'add --decontaminate=drop'),
    ({'decontaminate': 'drop', 'decontaminate_data': 'nowhere'}, 'no .*jsonl'),
    ({'out': pathlib.Path(__file__).parent}, 'is no directory of shards'),
  ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(
  corpus, tmp_path, console, changed, message
):
  options = _options(corpus, tmp_path / 'out')
  with pytest.raises((ValueError, OSError), match=message) as error:
    prepare.prepare(dataclasses.replace(options, **changed), console)
  assert '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['gpt2', 'llama'])
def test_redpajama_sample(conformance, tmp_path, console, kind):
  folder = conformance / 'data'
  name = 'llama/tokenizer.model' if kind == 'llama' else 'gpt2'
  patterns = f'{folder}/redpajama-sample/*/*.jsonl.gz'
  options = prepare.Options(
    patterns, f'{kind}:{folder}/tokenizers/{name}', tmp_path / 'out'
  )
  prepare.prepare(options, console)
  manifest = _check(tmp_path / 'out', patterns)
  assert {'c4', 'github', 'stackexchange', 'part-0'} < set(manifest.sources)
  assert manifest.documents + manifest.duplicates == 2132


@pytest.mark.parametrize('mode', ['drop', 'report'])
@pytest.mark.parametrize('known', [True, False])
def test_documents_that_repeat_a_benchmark(
  tmp_path, console, shards_dir, mode, known
):
  words = [f'word{i}' for i in range(40)]
  question = ' '.join(words[:20])
  scored = tmp_path / 'scored'
  scored.mkdir()
  row = {'question': question, 'choices': ['a', 'b'], 'answer': 0}
  name = 'mmlu' if known else 'other'
  with gzip.open(scored / f'{name}.jsonl.gz', 'wt') as file:
    file.write(json.dumps(row if known else {'x': [{'y': question}]}) + '\n')
  texts = [f'page {i} ' * 60 for i in range(100)]
  # 13 words in a row, told in other letters, and 12.
  texts[7] = f'So: {" ".join(words[3:16]).upper()}, no?'
  texts[8] = ' '.join(words[3:15])
  _write(tmp_path / 'a.jsonl', texts)
  options = _options(
    tmp_path / 'a.jsonl',
    tmp_path / 'out',
    tokenizer=f'hf:{shards_dir}',
    decontaminate=mode,
    decontaminate_data=str(scored),
  )
  manifest = prepare.prepare(options, console)
  assert manifest.contaminated == {'a': 1}
  assert manifest.documents == (99 if mode == 'drop' else 100)
  lines = (options.out / 'contaminated.jsonl').read_text().splitlines()
  (line,) = map(json.loads, lines)
  assert (line['line'], line['source']) == (8, 'a')
  assert line['file'] == str(tmp_path / 'a.jsonl')
  assert 'WORD3' in line['quoted']


def test_a_tokenizer_that_names_no_end_ends_with_endoftext(
  shards_dir, corpus, tmp_path, console
):
  (tmp_path / 'tokenizer.json').write_bytes(
    (shards_dir / 'tokenizer.json').read_bytes()
  )
  spec = f'hf:{tmp_path / "tokenizer.json"}'
  assert tokenizers.load(spec).eos_id is None
  options = _options(corpus, tmp_path / 'out', tokenizer=spec)
  manifest = prepare.prepare(options, console)
  made = manifests.load(shards_dir)
  assert manifest.shards == made.shards
  again = tokenizers.load(f'hf:{options.out}')
  assert again.eos_token == '<|endoftext|>'
  assert again.sha256 == manifest.tokenizer.sha256
  text = (tmp_path / 'tokenizer.json').read_text()
  text = text.replace('<|endoftext|>', '<|other|>')
  (tmp_path / 'tokenizer.json').write_text(text)
  options = dataclasses.replace(options, out=tmp_path / 'more')
  with pytest.raises(ValueError, match='names no end-of-text token'):
    prepare.prepare(options, console)
