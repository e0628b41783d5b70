"""Arguments of a preparation."""

import dataclasses
import pathlib
from typing import Any

from steepest.data import manifest as manifests


@dataclasses.dataclass(frozen=True)
class Options:
  """Arguments of a preparation.

  Attributes:
    inputs: as for inputs.find.
    tokenizer: as for tokenizers.load, or 'bpe-train:N'.
    out: directory to write.
    validation_tokens: of each source, kept from training.
    validation_fraction: of a source's tokens, the most that are kept from it.
    shard_tokens: in a file.
    seed: fixes the order of documents.
    source: the source of all documents; '': as the files tell.
    max_rejected: share of the lines that may give no document.
    decontaminate: documents that share 13 words with a benchmark are dropped
      ('drop'), listed ('report') or not looked for ('').
    decontaminate_data: directory of the benchmarks; '': those that are
      scored, downloaded when needed.
    workers: processes; 0: one for each core.
  """

  inputs: str
  tokenizer: str
  out: pathlib.Path
  validation_tokens: int = 1 << 18
  validation_fraction: float = 0.05
  shard_tokens: int = 1 << 27
  seed: int = 0
  source: str = ''
  max_rejected: float = 0.01
  decontaminate: str = ''
  decontaminate_data: str = ''
  workers: int = 0

  def command(self) -> dict[str, Any]:
    """Returns what decides the contents of the directory."""
    fields = dataclasses.asdict(self)
    del fields['out'], fields['workers']
    return fields

  def check(self) -> None:
    """Raises a ValueError where an argument makes no sense."""
    if self.validation_tokens < 0 or not 0 <= self.validation_fraction < 1:
      raise ValueError(
        f'--validation_tokens={self.validation_tokens} and '
        f'--validation_fraction={self.validation_fraction}: give 0 or more '
        'tokens, and a fraction of [0, 1)'
      )
    if self.shard_tokens < manifests.RECORD_TOKENS:
      raise ValueError(
        f'--shard_tokens={self.shard_tokens}: a record alone has '
        f'{manifests.RECORD_TOKENS}'
      )
    if not 0 <= self.max_rejected <= 1:
      raise ValueError(
        f'--max_rejected={self.max_rejected}: give a fraction of [0, 1]'
      )
    if self.decontaminate not in ('', 'drop', 'report'):
      raise ValueError(
        f'--decontaminate={self.decontaminate!r}: write drop or report'
      )
    if self.decontaminate_data and not self.decontaminate:
      raise ValueError(
        '--decontaminate_data says what to look for: add --decontaminate=drop '
        'or report'
      )
    if self.workers < 0:
      raise ValueError(f'--workers={self.workers}: give 0 or more')
    kind, _, size = self.tokenizer.partition(':')
    if kind == 'bpe-train' and not size.isdigit():
      raise ValueError(f'--tokenizer={self.tokenizer}: write bpe-train:N')
