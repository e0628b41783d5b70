"""Batches of token windows: a function of only the seed and the step.

B is the number of sequences in this process's batch, T the context, N the
tokens of a file.
"""

from collections.abc import Iterator, Mapping, Sequence
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

from etils import epath
import grain
from ml_collections import ConfigDict
import numpy as np

from steepest.data import (
  buckets,
  checks,
  flat,
  manifest as manifests,
  order as orders,
  shards,
  tokenizers,
)

Batch = dict[str, np.ndarray]
# What each process read of a token file.
Checked = Sequence[Sequence[Sequence[Any]]]

# Batches read ahead, and the threads that read them.
_READ_AHEAD = 8
_THREADS = 2


class Corpus(NamedTuple):
  """The opened `data.source`, not yet in any order.

  `content` identifies all tokens: one hash or several.
  """

  train: Mapping[str, orders.Windows]
  validation: Mapping[str, orders.Windows]
  vocab_size: int
  tokenizer_dir: str | None
  content: str
  bytes_per_token: Mapping[str, float]


class Share(NamedTuple):
  """The rows of every global batch that one process reads."""

  batch_size: int
  rows: Sequence[int]


class Data:
  """Training batches and validation sequences of one run.

  Attributes:
    vocab_size: number of possible token ids.
    tokenizer_dir: directory of the tokenizer.json, None for flat files.
    sources: names of the sources that training reads.
    bytes_per_token: UTF-8 bytes per token by source, of its validation
      documents if any; empty for flat files.
    fingerprint: hash of all that determines the data, except seed, steps and
      batch size.
  """

  def __init__(
    self,
    corpus: Corpus,
    order: orders.Order,
    share: Share,
    steps: int,
    eval_sequences: int,
    fingerprint: str,
    eos_id: int | None = None,
  ):
    """Takes opened data; an `eos_id` adds segment ids and positions."""
    self.vocab_size = corpus.vocab_size
    self.tokenizer_dir = corpus.tokenizer_dir
    self.sources = order.names
    self.bytes_per_token = dict(corpus.bytes_per_token)
    self.fingerprint = fingerprint
    self._validation = corpus.validation
    self._eval_sequences = eval_sequences
    self._share = share
    self._steps = steps
    self._eos_id = eos_id
    self._batches = grain.MapDataset.source(_Steps(order, share, steps)).map(
      self._split
    )

  def batch(self, step: int) -> Batch:
    """Returns `inputs` and `targets` of a step, int32[B, T] each.

    With data.mask_documents, also `segment_ids` and `positions` of the inputs,
    as returned by `segments`.
    """
    if not 0 <= step < self._steps:
      raise IndexError(f'step {step} of a run of {self._steps}')
    return self._batches[step]

  def train(self, first_step: int) -> Iterator[Batch]:
    """Yields the batches from a step on, read ahead in the background."""
    if first_step >= self._steps:
      return iter(())
    options = grain.ReadOptions(
      num_threads=_THREADS, prefetch_buffer_size=_READ_AHEAD
    )
    return iter(self._batches[first_step:].to_iter_dataset(options))

  def validation(self) -> dict[str, list[Batch]]:
    """Returns the first `eval_sequences` validation windows of each source.

    Returns:
      Source → batches, as in training, with `mask`, float32[B]: 1 for a
      sequence, 0 for the rows that pad the last batch.
    """
    return {
      name: self._validation_batches(windows)
      for name, windows in self._validation.items()
      if self._eval_sequences and len(windows)
    }

  def _validation_batches(self, windows: orders.Windows) -> list[Batch]:
    count = min(self._eval_sequences, len(windows))
    batches = []
    for start in range(0, count, self._share.batch_size):
      numbers = start + np.array(self._share.rows)
      real = numbers < count
      # The source's first window pads the last batch.
      batch = self._split(windows.read(np.where(real, numbers, 0).tolist()))
      batches.append({**batch, 'mask': real.astype(np.float32)})
    return batches

  def _split(self, tokens: np.ndarray) -> Batch:
    if tokens.max() >= self.vocab_size:
      raise ValueError(
        f'the data hold token id {tokens.max()} but the vocabulary ends at '
        f'{self.vocab_size - 1}: prepare them again'
      )
    tokens = tokens.astype(np.int32)
    batch = {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}
    if self._eos_id is not None:
      batch['segment_ids'], batch['positions'] = segments(
        batch['inputs'], self._eos_id
      )
    return batch


def segments(
  tokens_BxT: np.ndarray, eos_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers the documents of packed windows.

  A document includes its end-of-text token. A window may begin and end inside a
  document; positions of such a piece count from 0, too.

  Args:
    tokens_BxT: token ids.
    eos_id: of the end-of-text token.

  Returns:
    Segment ids from 1, and positions from 0 in each segment, both int32[B, T].
  """
  first_BxT = np.zeros(tokens_BxT.shape, bool)
  first_BxT[:, 0] = True
  first_BxT[:, 1:] = tokens_BxT[:, :-1] == eos_id
  segment_ids_BxT = np.cumsum(first_BxT, 1, dtype=np.int32)
  at_T = np.arange(tokens_BxT.shape[1], dtype=np.int32)
  starts_BxT = np.maximum.accumulate(np.where(first_BxT, at_T[None], 0), 1)
  return segment_ids_BxT, at_T[None] - starts_BxT


class _Steps:
  """The rows that one process reads in each step, as a source for Grain."""

  def __init__(self, order: orders.Order, share: Share, steps: int):
    self._order, self._share, self._steps = order, share, steps

  def __len__(self) -> int:
    return self._steps

  def __getitem__(self, step: int) -> np.ndarray:
    first = step * self._share.batch_size
    return self._order.read([first + row for row in self._share.rows])


def check(
  config: ConfigDict, part: tuple[int, int] = (0, 1)
) -> list[flat.Contents]:
  """Checks a part of the files of `data.source`.

  Args:
    config: the `data` keys of experiments/base.py.
    part: (i, n) for the i-th of n processes, each of which reads one n-th.

  Returns:
    What the process read of a token file; [] for other sources.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: the data are damaged.
  """
  kind, _, name = config.source.partition(':')
  if kind == 'flat' and name:
    return flat.check(_token_file(name), part)
  if kind == 'shards' and name:
    path = _shards(name)
    checks.verify(path, manifests.load(path), config.verify, part)
  return []


def open_data(
  config: ConfigDict,
  *,
  context: int,
  batch_size: int,
  steps: int,
  seed: int,
  eval_sequences: int,
  vocab_size: int = 0,
  tokenizer_sha256: str | None = None,
  rows: Sequence[int] | None = None,
  checked: Checked | None = None,
) -> Data:
  """Opens and checks the data of a run.

  Args:
    config: the `data` keys of experiments/base.py.
    context: T, tokens of a sequence.
    batch_size: sequences of a step, over all processes.
    steps: steps of the run.
    seed: fixes the order.
    eval_sequences: validation sequences of each source.
    vocab_size: rows of the model's embedding; 0: as many as the data need.
    tokenizer_sha256: of the tokenizer that must have made the shards.
    rows: of each batch that this process reads; None: all.
    checked: what `check` returned in each process; None: check all here.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: the data are damaged or do not fit the run.
  """
  if config.epochs < 1:
    raise ValueError(f'data.epochs={config.epochs}: give 1 or more')
  if checked is None:
    checked = [check(config)]
  corpus = _open_corpus(config, context, vocab_size, tokenizer_sha256, checked)
  weights = orders.parse_mixture(
    config.mixture, {n: len(w) for n, w in corpus.train.items()}
  )
  eos_id = _eos_id(config, corpus) if config.mask_documents else None
  order = orders.Order(corpus.train, weights, config, seed, steps * batch_size)
  fixed = [corpus.content, context, weights, config.shuffle, config.epochs]
  if config.mask_documents:
    fixed.append('mask_documents')
  return Data(
    corpus,
    order,
    Share(batch_size, range(batch_size) if rows is None else rows),
    steps,
    eval_sequences,
    hashlib.sha256(json.dumps(fixed).encode()).hexdigest(),
    eos_id,
  )


def _eos_id(config: ConfigDict, corpus: Corpus) -> int:
  if corpus.tokenizer_dir is None:
    raise ValueError(
      f'data.mask_documents: {config.source} does not mark the ends of '
      'documents: use shards:DIR'
    )
  tokenizer = tokenizers.load(f'hf:{corpus.tokenizer_dir}')
  # launch.prepare writes no shards without one.
  assert tokenizer.eos_id is not None
  return tokenizer.eos_id


def _open_corpus(
  config: ConfigDict,
  context: int,
  vocab_size: int,
  tokenizer: str | None,
  checked: Checked,
) -> Corpus:
  kind, _, name = config.source.partition(':')
  if kind == 'flat' and name:
    return _open_flat(_token_file(name), context, vocab_size, checked)
  if kind == 'shards' and name:
    path = _shards(name)
    manifest = manifests.load(path)
    checks.check_tokenizer(path, manifest, tokenizer)
    checks.check_fit(path, manifest, context, vocab_size)
    train, validation = (
      {
        source: shards.ShardWindows(
          path, manifest, manifest.select(split, source), context
        )
        for source in manifest.sources_of(split)
      }
      for split in ('train', 'validation')
    )
    return _of_shards(train, validation, path, manifest)
  if kind == 'tfds' and name:
    return _open_tfds(name, context, vocab_size, tokenizer)
  raise ValueError(
    f'data.source={config.source!r}: write shards:DIR or flat:FILE, or '
    'tfds:NAME'
  )


def _token_file(name: str) -> pathlib.Path:
  return pathlib.Path(name).expanduser()


def _shards(name: str) -> epath.Path:
  return epath.Path(buckets.for_records(name)).expanduser()


def _open_tfds(
  name: str, context: int, vocab_size: int, tokenizer: str | None
) -> Corpus:
  # TFDS takes seconds to import.
  from steepest.data import tfds_tokens

  found = tfds_tokens.open_dataset(name, context)
  train, validation = (
    found.windows[s] if s in found.windows else {} for s in manifests.SPLITS
  )
  if found.manifest is None:
    if not vocab_size:
      raise ValueError(
        f'tfds:{name} has no vocabulary size: set model.vocab_size'
      )
    return Corpus(train, validation, vocab_size, None, found.content, {})
  checks.check_tokenizer(found.directory, found.manifest, tokenizer)
  checks.check_fit(found.directory, found.manifest, context, vocab_size)
  return _of_shards(train, validation, found.directory, found.manifest)


def _of_shards(
  train: Mapping[str, orders.Windows],
  validation: Mapping[str, orders.Windows],
  directory: epath.Path,
  manifest: manifests.Manifest,
) -> Corpus:
  """Returns the corpus of shards, however their records are read."""
  return Corpus(
    train,
    validation,
    manifest.tokenizer.vocab_size,
    str(directory),
    json.dumps(
      [[s.sha256 for s in manifest.shards], manifest.tokenizer.sha256]
    ),
    manifest.bytes_per_token(),
  )


def _open_flat(
  path: pathlib.Path, context: int, vocab_size: int, checked: Checked
) -> Corpus:
  tokens_N = flat.open_tokens(path)
  found = flat.join(checked)
  if vocab_size and found.max_id >= vocab_size:
    raise ValueError(
      f'{path} holds token id {found.max_id} but the model has '
      f'{vocab_size} rows: set model.vocab_size to {found.max_id + 1} or more'
    )
  windows = flat.FlatWindows(tokens_N, context)
  return Corpus(
    {path.stem: windows},
    {},
    vocab_size or found.max_id + 1,
    None,
    found.sha256,
    {},
  )
