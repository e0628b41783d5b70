"""What is shown of a directory of shards, as text and as a page."""

import dataclasses
import html.parser
import io
import shutil

import pytest
from rich import console as rich_console

from steepest.data import (
  describe,
  describe_page,
  manifest as manifests,
  prepare,
)


class _Reader(html.parser.HTMLParser):
  """Collects tags and text, and checks that tags are closed in order."""

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.text = [], [], ''

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag != 'meta':
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def _page(manifest, windows):
  reader = _Reader()
  reader.feed(describe_page.page(manifest, 'some <shards>', windows))
  assert reader.open == []
  return reader


def test_table_and_page_tell_the_manifest(shards_dir, tmp_path):
  copy = shutil.copytree(shards_dir, tmp_path / 'copy')
  out = io.StringIO()
  describe.describe(copy, rich_console.Console(file=out, width=200))
  manifest = manifests.load(copy)
  page = (copy / 'describe.html').read_text()
  for source, held in manifest.sources.items():
    for shown in (source, f'{held.documents:,}', f'{held.tokens:,}'):
      assert shown in out.getvalue() and shown in page
  assert 'http://' not in page and '<script' not in page
  # Writing it does not make the directory another one.
  manifests.load(copy)


def test_lengths_count_every_document(shards_dir):
  manifest = manifests.load(shards_dir)
  for source, bins in manifest.lengths.items():
    held = manifest.sources[source]
    assert sum(bins) == held.documents
    low = sum(n * 2**i for i, n in enumerate(bins))
    assert low <= held.tokens < 2 * low
  bars = [t for t, _ in _page(manifest, []).tags if t == 'rect']
  longest = max(map(len, manifest.lengths.values()))
  lengths = sum(map(len, manifest.lengths.values()))
  assert len(bars) == longest + lengths


def test_text_of_anyone_is_escaped(shards_dir):
  evil = '<script>alert(1)</script>&amp;'
  manifest = manifests.load(shards_dir)
  (name, held), *_ = manifest.sources.items()
  manifest = dataclasses.replace(
    manifest,
    sources={evil: held},
    lengths={evil: manifest.lengths[name]},
    notes=[evil],
  )
  reader = _page(manifest, [describe_page.Window(evil, evil)])
  assert 'script' not in {tag for tag, _ in reader.tags}
  assert reader.text.count(evil) == 4


def test_contaminated_documents_are_counted(
  corpus, shards_dir, tmp_path, console
):
  options = prepare.Options(
    str(corpus),
    f'hf:{shards_dir}',
    tmp_path / 'out',
    decontaminate='report',
    decontaminate_data=str(corpus.parent),
  )
  manifest = prepare.prepare(options, console)
  assert manifest.contaminated
  out = io.StringIO()
  describe.describe(options.out, rich_console.Console(file=out, width=200))
  assert 'documents repeat a benchmark' in out.getvalue()


def test_nothing_is_shown_of_no_shards(tmp_path, console):
  with pytest.raises(FileNotFoundError, match='no manifest.json'):
    describe.describe(tmp_path, console)
