"""Describes a directory of shards: tables, and some of its text."""

from etils import epath
from rich import console as rich_console, table as rich_table

from steepest.data import checks, manifest as manifests, shards, tokenizers

# Tokens of the window shown from each of the first sources.
_WINDOW = 64
_SOURCES = 8


def describe(directory: epath.PathLike, console: rich_console.Console) -> None:
  """Prints sources, shards, notes and a few decoded windows.

  Raises:
    FileNotFoundError: no manifest, or a shard is missing.
    ValueError: damaged data.
  """
  directory = epath.Path(directory)
  manifest = manifests.load(directory)
  checks.verify(directory, manifest, 'full')
  checks.check_tokenizer(directory, manifest, None)
  console.print(_sources(manifest), _shards(manifest))
  made = manifest.tokenizer
  lines = [
    f'tokenizer {made.name}, {made.vocab_size:,} ids · '
    f'{manifest.duplicates:,} duplicates and {manifest.rejected:,} bad lines '
    f'left out · {manifest.unused_tokens:,} tokens fill no record'
  ]
  if manifest.contaminated is not None:
    lines.append(
      f'{sum(manifest.contaminated.values()):,} documents repeat a benchmark'
    )
  lines += [f'note: {note}' for note in manifest.notes]
  for line in lines:
    console.print(line)
  tokenizer = tokenizers.load(f'hf:{directory}')
  for source in manifest.sources_of('train')[:_SOURCES]:
    windows = shards.ShardWindows(
      directory, manifest, manifest.select('train', source), _WINDOW
    )
    # From the middle of the source.
    tokens = windows.read([len(windows) // 2])[0, :-1].tolist()
    console.print(f'\n{source}', style='bold')
    console.print(repr(tokenizer.decode(tokens)))


def _sources(manifest: manifests.Manifest) -> rich_table.Table:
  table = rich_table.Table('source', title='documents')
  for column in ('documents', 'tokens', 'share', 'bytes', 'bytes per token'):
    table.add_column(column, justify='right')
  for name, source in manifest.sources.items():
    table.add_row(
      name,
      f'{source.documents:,}',
      f'{source.tokens:,}',
      f'{source.tokens / manifest.tokens:.1%}',
      f'{source.bytes:,}',
      f'{source.bytes / source.tokens:.2f}',
    )
  return table


def _shards(manifest: manifests.Manifest) -> rich_table.Table:
  table = rich_table.Table('source', 'split', title='shards')
  for column in ('files', 'records', 'tokens', 'bytes'):
    table.add_column(column, justify='right')
  for source in manifest.sources_of('train'):
    for split in manifests.SPLITS:
      if selected := manifest.select(split, source):
        table.add_row(
          source,
          split,
          f'{len(selected):,}',
          f'{sum(s.records for s in selected):,}',
          f'{sum(s.tokens for s in selected):,}',
          f'{sum(s.bytes for s in selected):,}',
        )
  return table
