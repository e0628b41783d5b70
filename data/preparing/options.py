"""Arguments of a preparation, which are also the flags of launch.prepare."""

import dataclasses
import pathlib
from typing import Any

from steepest.data import manifest as manifests

# Datasets of the hub, by name: their locations and sizes.
SAMPLES = {
  'slimpajama-6b': ('hf:DKYoon/SlimPajama-6B', '6 B tokens, 14 GB'),
  'fineweb-edu': (
    'hf:HuggingFaceFW/fineweb-edu:sample-10BT',
    '10 B tokens, 28.5 GB',
  ),
}
# Most bytes of a document, or of a line that holds one.
DOCUMENT_BYTES = 1 << 28


def _option(help: str, **default: Any) -> Any:
  return dataclasses.field(metadata={'help': help}, **default)


@dataclasses.dataclass(frozen=True)
class Options:
  """Arguments of a preparation; metadata['help'] of a field is its meaning."""

  inputs: str = _option(
    'Comma-separated globs, hf:DATASET[:CONFIG[:SPLIT]] (or a local copy), '
    'tfds:NAME[:SPLIT] (or its directory), or the name of a sample: '
    f'{", ".join(f"{n} ({size})" for n, (_, size) in SAMPLES.items())}.'
  )
  tokenizer: str = _option(
    'gpt2, gpt2:DIR, hf:FILE, llama:FILE, or bpe-train:N to train one with N '
    'entries.'
  )
  out: pathlib.Path = _option('Directory to write.')
  validation_tokens: int = _option(
    'Validation tokens per source.', default=1 << 18
  )
  validation_fraction: float = _option(
    'Largest fraction of a source to use for validation.', default=0.05
  )
  shard_tokens: int = _option('Tokens per shard.', default=1 << 27)
  seed: int = _option('Seed of the document order.', default=0)
  source: str = _option(
    'Source of all documents; overrides the files.', default=''
  )
  text_field: str = _option(
    'Key or column with the text, in JSON lines, Parquet and datasets.',
    default='text',
  )
  max_rejected: float = _option(
    'Largest fraction of bad lines; more than that, and more than ten, stop '
    'the job.',
    default=0.01,
  )
  document_bytes: int = _option(
    'Largest size of a document, and of a line that holds one; longer ones '
    'count as bad lines.',
    default=DOCUMENT_BYTES,
  )
  decontaminate: str = _option(
    'What to do with documents that share 13 consecutive words with a scored '
    "benchmark: 'drop' or 'report'; both write contaminated.jsonl.",
    default='',
  )
  decontaminate_data: str = _option(
    'Directory of other benchmarks, *.jsonl[.gz]; default: those of '
    'launch.evaluate.',
    default='',
  )

  def command(self) -> dict[str, Any]:
    """Returns the arguments that determine the directory's contents."""
    fields = dataclasses.asdict(self)
    del fields['out']
    return fields

  def check(self) -> None:
    """Raises ValueError if an argument is invalid."""
    kind, _, size = self.tokenizer.partition(':')
    for valid, name, hint in (
      (self.validation_tokens >= 0, 'validation_tokens', 'give 0 or more'),
      (
        0 <= self.validation_fraction < 1,
        'validation_fraction',
        'give a fraction of [0, 1)',
      ),
      (
        self.shard_tokens >= manifests.RECORD_TOKENS,
        'shard_tokens',
        f'a record alone has {manifests.RECORD_TOKENS}',
      ),
      (
        1 <= self.document_bytes <= 1 << 28,
        'document_bytes',
        f'give 1 to {1 << 28}',
      ),
      (
        0 <= self.max_rejected <= 1,
        'max_rejected',
        'give a fraction of [0, 1]',
      ),
      (
        self.decontaminate in ('', 'drop', 'report'),
        'decontaminate',
        'write drop or report',
      ),
      (
        self.decontaminate or not self.decontaminate_data,
        'decontaminate_data',
        'add --decontaminate=drop or report',
      ),
      (
        # Finished work is moved there from a neighbouring directory.
        not self.out.is_mount(),
        'out',
        'is a mount point, give a directory inside it',
      ),
      (
        kind != 'bpe-train' or size.isdigit(),
        'tokenizer',
        'write bpe-train:N',
      ),
    ):
      if not valid:
        raise ValueError(f'--{name}={getattr(self, name)}: {hint}')
