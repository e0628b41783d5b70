"""Turns text into token shards.

    python -m launch.prepare --input='corpus/*.jsonl.zst' --tokenizer=gpt2 \\
        --out=shards
    python -m launch.prepare --describe=shards

Reads .jsonl, .jsonl.gz, .jsonl.zst and .parquet with a `text` in each record,
and any other file as one document. Duplicates are dropped, every source gives
some documents for validation, and each document ends with the end of text.
"""

import os
import pathlib
import sys

from absl import flags

from steepest.launch import cli


def main() -> None:
  """The command."""
  describe = flags.DEFINE_string(
    'describe', None, 'Show what this directory of shards holds.'
  )
  values = {
    'input': flags.DEFINE_string('input', None, 'Globs, comma-separated.'),
    'tokenizer': flags.DEFINE_string(
      'tokenizer',
      None,
      'gpt2, gpt2:DIR, hf:FILE, llama:FILE, or bpe-train:N for a new one of N '
      'entries.',
    ),
    'out': flags.DEFINE_string('out', None, 'Directory to write.'),
    'validation_tokens': flags.DEFINE_integer(
      'validation_tokens', 1 << 18, 'Tokens of each source for validation.'
    ),
    'validation_fraction': flags.DEFINE_float(
      'validation_fraction', 0.05, 'Of a source at most this for validation.'
    ),
    'shard_tokens': flags.DEFINE_integer(
      'shard_tokens', 1 << 27, 'Tokens of a file.'
    ),
    'seed': flags.DEFINE_integer('seed', 0, 'Fixes the order of documents.'),
    'source': flags.DEFINE_string(
      'source', '', 'Source of all documents, whatever the files say.'
    ),
    'workers': flags.DEFINE_integer(
      'workers', 0, 'Threads that tokenize; 0: one for each core.'
    ),
  }
  cli.run(lambda: _prepare(describe.value, values), __doc__)


def _prepare(
  describe: str | None, holders: dict[str, flags.FlagHolder]
) -> None:
  values = {name: holder.value for name, holder in holders.items()}
  # Read by the tokenizers library when it starts its threads.
  if workers := values.pop('workers'):
    os.environ['RAYON_NUM_THREADS'] = str(workers)
  from rich import console as rich_console

  console = rich_console.Console(stderr=True)
  if describe is not None:
    from steepest.data import describe as describing

    describing.describe(pathlib.Path(describe), rich_console.Console())
    return
  for name in ('input', 'tokenizer', 'out'):
    if not values[name]:
      raise ValueError(f'--{name} is missing: see --help')
  from steepest.data import prepare

  values['inputs'] = values.pop('input')
  values['out'] = pathlib.Path(values['out']).absolute()
  options = prepare.Options(**values)
  manifest = prepare.prepare(options, console)
  for note in manifest.notes:
    print(f'note: {note}', file=sys.stderr)
  print(
    f'{manifest.documents:,} documents, {manifest.tokens:,} tokens, '
    f'{manifest.duplicates:,} duplicates and {manifest.rejected:,} bad lines '
    f'left out: {options.out}'
  )


if __name__ == '__main__':
  main()
