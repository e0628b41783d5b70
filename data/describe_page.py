"""A page that shows what a directory of shards holds, in one HTML file."""

from collections.abc import Sequence
import html
import itertools
from typing import NamedTuple

from steepest.data import manifest as manifests

# Sources that get a histogram of their own; all have a row of the table.
_HISTOGRAMS = 12
_WIDTH, _HEIGHT = 300, 96
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60676f;
  --paper: #ffffff; --line: #d9dde2; --bar: #2f6fb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee;
  --soft: #9aa3ad; --paper: #15181c; --line: #343a41; --bar: #6ea8e0; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p, figcaption { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
td.share { min-width: 9rem; text-align: left; }
.bar { display: inline-block; height: .7rem; background: var(--bar);
  vertical-align: baseline; margin-right: .4rem; min-width: 1px; }
.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); }
figure { margin: 0; } svg { width: 100%; height: auto; }
rect { fill: var(--bar); } svg text { fill: var(--soft); font-size: 9px; }
line { stroke: var(--line); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem;
  border: 1px solid var(--line); font-size: 13px; }
"""


class Window(NamedTuple):
  """Some decoded tokens of a source."""

  source: str
  text: str


def page(
  manifest: manifests.Manifest, title: str, windows: Sequence[Window]
) -> str:
  """Returns a page without scripts and without links.

  Args:
    manifest: of the shards.
    title: heads the page.
    windows: texts to show.
  """
  parts = [
    f'<h1>{_text(title)}</h1>',
    f'<p>{_text(_summary(manifest))}</p>',
    *(f'<p>{_text(note)}</p>' for note in manifest.notes),
    '<h2>Sources</h2>',
    _table(manifest),
    *_histograms(manifest),
    '<h2>Windows</h2>',
    *(
      f'<figure><figcaption>{_text(w.source)}</figcaption>'
      f'<pre>{_text(w.text)}</pre></figure>'
      for w in windows
    ),
  ]
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    f'<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
    + '\n'.join(parts)
    + '\n</body>\n</html>\n'
  )


def _summary(manifest: manifests.Manifest) -> str:
  made = manifest.tokenizer
  return (
    f'{manifest.documents:,} documents, {manifest.tokens:,} tokens of '
    f'{made.name} ({made.vocab_size:,} ids). Left out: '
    f'{manifest.duplicates:,} duplicates, {manifest.rejected:,} bad lines; '
    f'{manifest.unused_tokens:,} tokens fill no record.'
  )


def _table(manifest: manifests.Manifest) -> str:
  head = ('source', 'documents', 'tokens', 'bytes', 'bytes per token')
  cells = ''.join(f'<th>{name}</th>' for name in (*head, 'share of tokens'))
  rows = [f'<tr>{cells}</tr>']
  for name, held in manifest.sources.items():
    share = held.tokens / manifest.tokens
    values = (
      _text(name),
      f'{held.documents:,}',
      f'{held.tokens:,}',
      f'{held.bytes:,}',
      f'{held.bytes / held.tokens:.2f}',
    )
    cells = ''.join(f'<td>{value}</td>' for value in values)
    rows.append(
      f'<tr>{cells}<td class="share"><span class="bar" '
      f'style="width:{6 * share:.2f}rem"></span>{share:.1%}</td></tr>'
    )
  return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _histograms(manifest: manifests.Manifest) -> list[str]:
  if not manifest.lengths:
    return []
  lengths = manifest.lengths
  # Of all sources, bin by bin.
  whole = [
    sum(b) for b in itertools.zip_longest(*lengths.values(), fillvalue=0)
  ]
  largest = sorted(lengths, key=lambda n: -manifest.sources[n].tokens)
  shown = [('all', whole)]
  if len(lengths) > 1:
    shown += [(name, lengths[name]) for name in largest[:_HISTOGRAMS]]
  figures = ''.join(
    f'<figure><figcaption>{_text(name)}</figcaption>'
    f'{_histogram(bins, len(whole))}</figure>'
    for name, bins in shown
  )
  return [
    '<h2>Tokens of a document</h2>',
    '<p>How many documents are how long; each bar reaches from its number to '
    'twice that.</p>',
    f'<div class="grid">{figures}</div>',
  ]


def _histogram(bins: Sequence[int], count: int) -> str:
  top, bottom = 10, _HEIGHT - 14
  step = _WIDTH / count
  scale = (bottom - top) / max(bins)
  parts = [
    f'<line x1="0" x2="{_WIDTH}" y1="{bottom}" y2="{bottom}"/>',
    f'<text x="0" y="8">{max(bins):,} at most</text>',
  ]
  for i, documents in enumerate(bins):
    height = documents * scale
    parts.append(
      f'<rect x="{i * step + 1:.1f}" y="{bottom - height:.1f}" '
      f'width="{step - 2:.1f}" height="{height:.1f}">'
      f'<title>{2**i:,} to {2 ** (i + 1) - 1:,} tokens: {documents:,}</title>'
      '</rect>'
    )
  for i in range(0, count, 4):
    parts.append(f'<text x="{i * step:.1f}" y="{_HEIGHT - 3}">{2**i:,}</text>')
  return (
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
    f'aria-label="documents by length">{"".join(parts)}</svg>'
  )


def _text(text: str) -> str:
  return html.escape(text)
