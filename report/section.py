"""The parts of a page: sections of paragraphs, tables and figures.

Every text is plain and is escaped when the page is written; nothing here is
HTML. A topic is one file with its table, its figure and its text. It defines

    def sections(comparison: tables.Comparison) -> list[Section]

(most return one or none) and report.py lists the topics in their order.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import pandas as pd

from steepest.report import words


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table.

  Attributes:
    text: what is shown.
    note: a smaller line below it.
    value: the number that `text` rounds; shown on hover.
    optimizer: optimizer.name, whose line sample precedes the text.
    style: 'best' (bold), 'bad', 'soft', or '' for plain.
    hint: shown on hover.
  """

  text: str
  note: str = ''
  value: float | None = None
  optimizer: str = ''
  style: str = ''
  hint: str = ''


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table.

  Attributes:
    title: its head.
    unit: a smaller line below the title; of all numbers in the column.
    number: whether its cells are right-aligned and never wrapped.
    over: title shared with neighbouring columns; '' for none.
    form: format of the numbers that `Table.of` finds in it.
    best: column of the frame that says which cells are bold.
  """

  title: str
  unit: str = ''
  number: bool = False
  over: str = ''
  form: str = '.3g'
  best: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
  """A table; the first cell of a row is its head.

  Attributes:
    title: for screen readers, and shown while it is folded.
    columns: with their heads.
    rows: one cell per column; a str is a plain cell. A row that is a str is a
      heading for the rows below it.
    note: smaller text below it.
    folded: whether it starts folded.
    style: 'wide' fills the page, 'words' has sentences in its last column.
  """

  title: str
  columns: Sequence[Column]
  rows: Sequence[Sequence[Cell | str] | str]
  note: str = ''
  folded: bool = False
  style: str = ''

  @classmethod
  def of(
    cls,
    title: str,
    frame: pd.DataFrame,
    columns: Mapping[str, Column],
    heading: str = '',
    **changes: Any,
  ) -> 'Table':
    """Returns the table of a frame.

    Args:
      title: as above.
      frame: one row per row; cells are texts, numbers, Cells or missing.
      columns: by the frame's columns; `optimizer` has the optimizers' names.
      heading: column of the frame whose values head the rows that share them.
      **changes: other attributes.
    """
    rows: list[Sequence[Cell | str] | str] = []
    over = None
    for row in frame.to_dict('records'):
      if heading and row[heading] != over:
        over = row[heading]
        rows.append(words.named(over))
      rows.append([_cell(key, row, column) for key, column in columns.items()])
    return cls(title, list(columns.values()), rows, **changes)


def _cell(key: Any, row: Mapping[Any, Any], column: Column) -> Cell | str:
  value = row[key]
  if isinstance(value, Cell):
    return value
  if key == 'optimizer':
    return Cell(words.name(value), optimizer=value)
  style = 'best' if column.best and row[column.best] else ''
  if isinstance(value, str):
    return Cell(value, style=style) if style else value
  text = words.signed(value, column.form)
  value = None if text == words.MISSING else float(value)
  return Cell(text, value=value, style=style)


@dataclasses.dataclass(frozen=True)
class Switch:
  """A choice of one option: buttons or, for many options, a menu.

  Attributes:
    name: key of `when` in the traces that it shows and hides. Switches with the
      same name act as one.
    label: precedes it.
    options: value → text; the first is preselected.
  """

  name: str
  label: str
  options: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Figure:
  """A Plotly figure.

  Attributes:
    key: id of its element, unique on a page.
    title: what it shows, for screen readers.
    caption: below it.
    content: Plotly's `data` and `layout` (from theme.layout), and what page.js
      reads; see theme.py.
    switches: above it.
    optimizers: optimizer.name → name, for the buttons that show and hide each.
  """

  key: str
  title: str
  caption: str
  content: Mapping[str, Any]
  switches: Sequence[Switch] = ()
  optimizers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Note:
  """A paragraph: a 'note' in smaller type, or a prominent 'warning'."""

  text: str
  style: str = 'note'


# A str is a paragraph.
Block = str | Note | Table | Figure


@dataclasses.dataclass(frozen=True)
class Section:
  """A topic of a page.

  Attributes:
    anchor: target of links, unique on a page.
    title: its heading.
    blocks: in order.
    folded: whether it starts folded; sections that answer the page's question
      start open.
  """

  anchor: str
  title: str
  blocks: Sequence[Block]
  folded: bool = True

  @property
  def figures(self) -> list[Figure]:
    """The figures among its blocks."""
    return [block for block in self.blocks if isinstance(block, Figure)]


@dataclasses.dataclass(frozen=True)
class Answer:
  """The answer for one group of runs, at the top of the page.

  Attributes:
    subject: name of the group, such as 'GPT-2, epochs 4'.
    text: one or two sentences.
    fair: whether the comparison is fair.
    fairness: why, or why not, in a sentence.
  """

  subject: str
  text: str
  fair: bool
  fairness: str
