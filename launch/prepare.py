"""Turns text into token shards.

    python -m launch.prepare --input='corpus/*.jsonl.zst' --tokenizer=gpt2 \\
        --out=shards
    python -m launch.prepare --describe=shards

Reads .jsonl, .jsonl.gz, .jsonl.zst and .parquet with a `text` in each record,
any other file as one document, and datasets of the Hugging Face hub and of
TFDS. Duplicates are dropped, every source gives some documents for validation,
and each document ends with the end of text. Stopped at any point, the same
command goes on where it was; the result is the same, byte for byte.
"""

import os
import pathlib
import sys

from absl import flags

from steepest.launch import cli


def main() -> None:
  """The command."""
  describe = flags.DEFINE_string(
    'describe',
    None,
    'Check a directory of shards and show what it holds.',
  )
  values = {
    'input': flags.DEFINE_string(
      'input',
      None,
      'Comma-separated globs, hf:DATASET[:CONFIG[:SPLIT]] (also a local copy) '
      'or tfds:NAME[:SPLIT] (also the directory of one).',
    ),
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
    'max_rejected': flags.DEFINE_float(
      'max_rejected',
      0.01,
      'Share of the lines that may be bad; more stop the job. Ten never do.',
    ),
    'decontaminate': flags.DEFINE_string(
      'decontaminate',
      '',
      'What is done with documents that share 13 words in a row with a scored '
      "benchmark: 'drop' or 'report'; both write contaminated.jsonl.",
    ),
    'decontaminate_data': flags.DEFINE_string(
      'decontaminate_data',
      '',
      'Directory of other benchmarks, *.jsonl[.gz]; default: those that '
      'launch.evaluate scores.',
    ),
    'workers': flags.DEFINE_integer(
      'workers', 0, 'Processes that tokenize; 0: one for each core.'
    ),
  }
  cli.run(lambda: _prepare(describe.value, values), __doc__)


def _prepare(
  describe: str | None, holders: dict[str, flags.FlagHolder]
) -> None:
  values = {name: holder.value for name, holder in holders.items()}
  # Read by the tokenizers library when it starts its threads.
  if values['workers'] == 1:
    os.environ['RAYON_NUM_THREADS'] = '1'
  from rich import console as rich_console

  console = rich_console.Console(stderr=True)
  if describe is not None:
    from steepest.data import describe as describing

    describing.describe(describe, rich_console.Console())
    return
  for name in ('input', 'tokenizer', 'out'):
    if not values[name]:
      raise ValueError(f'--{name} is missing: see --help')
  from steepest.data import prepare

  values['inputs'] = values.pop('input')
  values['out'] = pathlib.Path(values['out']).absolute()
  if values['decontaminate_data']:
    directory = pathlib.Path(values['decontaminate_data']).absolute()
    values['decontaminate_data'] = str(directory)
  options = prepare.Options(**values)
  manifest = prepare.prepare(options, console)
  for note in manifest.notes:
    print(f'note: {note}', file=sys.stderr)
  print(
    f'{manifest.documents:,} documents, {manifest.tokens:,} tokens, '
    f'{manifest.duplicates:,} duplicates and {manifest.rejected:,} bad lines '
    f'left out: {options.out}'
  )
  if manifest.contaminated is not None:
    print(
      f'{sum(manifest.contaminated.values()):,} documents repeat a benchmark '
      f'({"kept" if options.decontaminate == "report" else "left out"}): see '
      f'{options.out / "contaminated.jsonl"}'
    )


if __name__ == '__main__':
  main()
