"""What a directory of shards holds: a table, some text, a page."""

from etils import epath
from rich import console as rich_console, markup, table as rich_table

from steepest.data import (
  checks,
  describe_page,
  manifest as manifests,
  shards,
  tokenizers,
)

# Tokens of a window that is shown, and the windows of a directory.
_WINDOW = 64
_SHOWN = 8
_PAGE = 'describe.html'


def describe(directory: epath.PathLike, console: rich_console.Console) -> None:
  """Prints the sources, the notes and a few decoded windows.

  The same, with a histogram of the documents' lengths, goes to describe.html
  in the directory, where that can be written.

  Raises:
    FileNotFoundError: no manifest, or a shard is missing.
    ValueError: damaged data.
  """
  directory = epath.Path(directory)
  manifest = manifests.load(directory)
  checks.verify(directory, manifest, 'full')
  checks.check_tokenizer(directory, manifest, None)
  checks.check_records(directory, manifest, 'full')
  console.print(_sources(manifest), _files(manifest))
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
    console.print(line, markup=False, highlight=False)
  windows = _windows(directory, manifest)
  for window in windows:
    console.print(f'\n[bold]{markup.escape(window.source)}[/bold]')
    console.print(repr(window.text), markup=False, highlight=False)
  path = directory / _PAGE
  try:
    path.write_text(describe_page.page(manifest, directory.name, windows))
    said = f'page: {path}'
  except OSError as error:
    said = f'no page was written: {error}'
  console.print(f'\n{said}', markup=False, highlight=False)


def _windows(
  directory: epath.Path, manifest: manifests.Manifest
) -> list[describe_page.Window]:
  """Decodes a window from the middle of some sources."""
  tokenizer = tokenizers.load(f'hf:{directory}')
  windows = []
  for source in manifest.sources_of('train')[:_SHOWN]:
    held = shards.ShardWindows(
      directory, manifest, manifest.select('train', source), _WINDOW
    )
    tokens = held.read([len(held) // 2])[0, :-1]
    windows.append(
      describe_page.Window(source, tokenizer.decode(tokens.tolist()))
    )
  return windows


def _sources(manifest: manifests.Manifest) -> rich_table.Table:
  table = rich_table.Table('source', title='documents')
  for column in ('documents', 'tokens', 'share', 'bytes', 'bytes per token'):
    table.add_column(column, justify='right')
  for name, held in manifest.sources.items():
    table.add_row(
      markup.escape(name),
      f'{held.documents:,}',
      f'{held.tokens:,}',
      f'{held.tokens / manifest.tokens:.1%}',
      f'{held.bytes:,}',
      f'{held.bytes / held.tokens:.2f}',
    )
  return table


def _files(manifest: manifests.Manifest) -> rich_table.Table:
  table = rich_table.Table('source', 'split', title='shards')
  for column in ('files', 'records', 'tokens', 'bytes'):
    table.add_column(column, justify='right')
  for source in manifest.sources_of('train'):
    for split in ('train', 'validation'):
      if held := manifest.select(split, source):
        table.add_row(
          markup.escape(source),
          split,
          f'{len(held):,}',
          f'{sum(s.records for s in held):,}',
          f'{sum(s.tokens for s in held):,}',
          f'{sum(s.bytes for s in held):,}',
        )
  return table
