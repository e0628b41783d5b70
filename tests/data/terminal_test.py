"""What names and files hold is shown as it is."""

import io

from rich.table import Table

from steepest.data.terminal import Console


def test_text_is_neither_markup_nor_control():
  out = io.StringIO()
  console = Console(file=out, width=60)
  hostile = 'a[/b] [red]c :smile: \x1b]0;title\x07 \x9b2J \u202e'
  table = Table(hostile)
  table.add_row(hostile)
  console.print(hostile)
  console.print(table)
  shown = out.getvalue()
  escaped = 'a[/b] [red]c :smile: \\x1b]0;title \\x9b2J \\u202e'
  assert shown.splitlines()[0] == escaped
  assert all(c.isprintable() or c == '\n' for c in shown)
  assert shown.count('[red]c') == 3
