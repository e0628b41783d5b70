"""What a page is made of: sections of paragraphs, tables and figures.

Every text is plain text and is escaped where the page is written; nothing here
is HTML. A topic is one file with its table, its figure and its words. It has

    def sections(comparison: tables.Comparison) -> list[Section]

(most return one or none) and page.py lists the topics in their order.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
from typing import Any

import pandas as pd


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table.

  Attributes:
    text: what is shown.
    note: a smaller line below it.
    value: the number of which `text` is a rounding; shown while pointed at.
    optimizer: optimizer.name, whose line sample stands before the text.
    style: 'best' (bold), 'ahead', 'bad', 'soft', or '' for plain.
    hint: shown while pointed at.
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
    unit: a smaller line below the title; all numbers of a column have one.
    number: whether its cells are right-aligned and never broken.
    over: title that neighbouring columns share; '' where none does.
  """

  title: str
  unit: str = ''
  number: bool = False
  over: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
  """A table; the first cell of a row is its head.

  Attributes:
    title: names it to those who cannot see it, and where it is folded away.
    columns: with their heads.
    rows: a cell for each column, a str for a plain one. A row that is a str is
      a heading over the rows below it.
    note: smaller text below it.
    folded: whether a click opens it.
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
    frame: pd.DataFrame,
    title: str,
    numbers: Collection[str] = (),
    marked: Collection[tuple[int, int]] = (),
    muted: Collection[tuple[int, int]] = (),
    **changes: Any,
  ) -> 'Table':
    """Returns the table of a frame of texts, its columns' names the heads.

    Args:
      frame: cells; None is shown as a dash.
      title: as above.
      numbers: columns whose cells are numbers.
      marked: (row, column) positions that stand out.
      muted: likewise of those that are no comparison.
      changes: of the other attributes.
    """
    return cls(
      title,
      [Column(name, number=name in numbers) for name in frame.columns],
      [
        [
          Cell(
            '–' if text is None else str(text),
            style='best'
            if (i, j) in marked
            else 'soft'
            if (i, j) in muted
            else '',
          )
          for j, text in enumerate(row)
        ]
        for i, row in enumerate(frame.itertuples(index=False))
      ],
      **changes,
    )


@dataclasses.dataclass(frozen=True)
class Switch:
  """A choice of one option: buttons or, of many, a menu.

  Attributes:
    name: key of `when` in the traces that it shows and hides. Switches of one
      name are one switch.
    label: stands before it.
    options: value → text; the first is chosen.
  """

  name: str
  label: str
  options: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Figure:
  """A Plotly figure.

  Attributes:
    key: of its element, once on a page.
    title: what it shows, for those who cannot see it.
    caption: below it.
    content: `data` and `layout` of Plotly, the layout from theme.layout, and
      what page.js reads, see theme.py.
    switches: above it.
    optimizers: optimizer.name → name of those that buttons show and hide.
  """

  key: str
  title: str
  caption: str
  content: Mapping[str, Any]
  switches: Sequence[Switch] = ()
  optimizers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Alert:
  """A paragraph that must not be missed."""

  text: str


@dataclasses.dataclass(frozen=True)
class Note:
  """A paragraph in smaller type."""

  text: str


@dataclasses.dataclass(frozen=True)
class Fold:
  """Blocks that a click opens.

  Attributes:
    title: always seen.
    blocks: in order.
  """

  title: str
  blocks: Sequence['Block']


# A str is a paragraph.
Block = str | Note | Alert | Table | Figure | Fold


@dataclasses.dataclass(frozen=True)
class Section:
  """A topic of a page.

  Attributes:
    anchor: what links name, once on a page.
    title: its heading.
    blocks: in order.
    folded: whether a click opens it; those that answer the page's question
      stand open.
  """

  anchor: str
  title: str
  blocks: Sequence[Block]
  folded: bool = True


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the page says of one group of runs, at its top.

  Attributes:
    subject: name of the group, such as 'GPT-2, 4 epochs'.
    text: one or two sentences.
    fair: whether the comparison is fair.
    fairness: why, or why not, in a sentence.
  """

  subject: str
  text: str
  fair: bool
  fairness: str


def figures(blocks: Sequence[Block]) -> list[Figure]:
  """Returns the figures among blocks, folded ones too."""
  found = []
  for block in blocks:
    if isinstance(block, Figure):
      found.append(block)
    elif isinstance(block, Fold):
      found += figures(block.blocks)
  return found
