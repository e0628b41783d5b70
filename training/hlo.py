"""XLA's text of a compiled program: its computations and their instructions.

Also which bytes of its parameters a computation reads and which of its results
it writes, as a kernel that is made of it does.
"""

import dataclasses
import functools
import math
import re

_SLICES = ('dynamic-slice', 'gather', 'slice')
_UPDATES = ('dynamic-update-slice', 'scatter')
# An element of what these put out needs many of what they take.
_MIXES = ('custom-call', 'dot', 'fusion', 'reduce', 'reduce-window', 'sort')

_Leaf = tuple[int, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of the program.

  Attributes:
    name: it.
    leaves: bits of an element and shape of each array that it puts out.
    opcode: what it does.
    operands: names of instructions.
    attributes: all that follows them.
  """

  name: str
  leaves: tuple[_Leaf, ...]
  opcode: str
  operands: tuple[str, ...]
  attributes: str

  @property
  def elements(self) -> int:
    return sum(math.prod(shape) for _, shape in self.leaves)

  @property
  def bytes(self) -> int:
    return sum(map(_size, self.leaves))

  def attribute(self, pattern: str) -> str:
    """Returns the first group of a match among the attributes, or ''."""
    match = re.search(pattern, self.attributes)
    return match[1] if match else ''

  def called(self, *names: str) -> list[str]:
    """Returns the computations that attributes of these names give."""
    found = []
    for name in names:
      found += re.findall(
        r'%([\w.\-]+)',
        self.attribute(rf'\b{name}=(\{{[^}}]*\}}|%[\w.\-]+)'),
      )
    return found


class Computation:
  """Instructions, the last of which gives the result."""

  def __init__(self, instructions: list[Instruction], root: str):
    self.by_name = {i.name: i for i in instructions}
    self.root = self.by_name[root]
    self._users: dict[str, list[Instruction]] = {}
    for i in instructions:
      for operand in dict.fromkeys(i.operands):
        self._users.setdefault(operand, []).append(i)
    self._touched: dict[str, int] = {}

  @property
  def results(self) -> list[Instruction]:
    if self.root.opcode == 'tuple':
      return [self.by_name[name] for name in self.root.operands]
    return [self.root]

  @property
  def parameters(self) -> list[Instruction]:
    return [i for i in self.by_name.values() if i.opcode == 'parameter']

  def read(self) -> int:
    """Returns the bytes of the parameters that are needed."""
    total = 0
    for p in self.parameters:
      # Arrays have one leaf; a tuple would be read by its elements.
      part = self._needed(p.name) / max(p.elements, 1)
      total += round(p.bytes * part)
    return total

  def written(self) -> int:
    """Returns the bytes of the results that change."""
    total = 0
    for result in self.results:
      update = self._in_place(result)
      if update is None:
        total += result.bytes
      else:
        changed = self.by_name[update.operands[_update_at(update)]]
        total += changed.elements * result.bytes // max(result.elements, 1)
    return total

  def _behind(self, i: Instruction) -> Instruction:
    while i.opcode == 'bitcast':
      i = self.by_name[i.operands[0]]
    return i

  def _in_place(self, result: Instruction) -> Instruction | None:
    """Returns the update of a parameter's part that a result is, if it is."""
    i = self._behind(result)
    if i.opcode not in _UPDATES:
      return None
    target = self._behind(self.by_name[i.operands[0]])
    return i if target.opcode == 'parameter' else None

  def _needed(self, name: str) -> int:
    """Returns how many elements of a value the results need."""
    if name not in self._touched:
      i = self.by_name[name]
      parts = [self._needed_by(u, i) for u in self._users.get(name, [])]
      if i in self.results:
        parts.append(i.elements)
      self._touched[name] = min(i.elements, sum(parts))
    return self._touched[name]

  def _needed_by(self, user: Instruction, i: Instruction) -> int:
    first = user.operands[0] == i.name
    if user.opcode in _SLICES and first:
      return self._needed(user.name)
    if user.opcode in _UPDATES:
      ends = [self._in_place(result) for result in self.results]
      if first and user in ends:
        # Scattered rows are added to those that are there.
        update = self.by_name[user.operands[_update_at(user)]]
        return update.elements if user.opcode == 'scatter' else 0
      return i.elements
    if user.opcode == 'tuple':
      return 0
    if user.opcode in _MIXES or user.elements != i.elements:
      return i.elements
    return self._needed(user.name)


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """Returns the computations by name, and the name of the one that is run.

  Raises:
    ValueError: the text is not of a compiled program.
  """
  program: dict[str, Computation] = {}
  entry = name = root = ''
  lines: list[Instruction] = []
  for line in text.splitlines():
    if match := re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line):
      name, root, lines = match[2], '', []
      entry = name if match[1] else entry
    elif name and line.startswith('}'):
      program[name] = Computation(lines, root or lines[-1].name)
      name = ''
    elif name:
      match = re.match(r'\s+(ROOT )?%?([\w.\-]+) = (.*)$', line)
      if match:
        lines.append(_instruction(match[2], match[3]))
        root = match[2] if match[1] else root
  if entry not in program:
    raise ValueError('no text of a compiled program: it has no ENTRY')
  return program, entry


def _instruction(name: str, text: str) -> Instruction:
  """Reads `TYPE OPCODE(OPERANDS), ATTRIBUTES`."""
  end = _closing(text, 0) + 1 if text.startswith('(') else text.index(' ')
  start = text.index('(', end)
  close = _closing(text, start)
  return Instruction(
    name,
    _leaves(text[:end]),
    text[end:start].strip(),
    tuple(re.findall(r'%([\w.\-]+)', text[start:close])),
    text[close + 1 :],
  )


def _closing(text: str, start: int) -> int:
  """Returns where the bracket at `start` closes."""
  depth = 0
  for match in re.compile(r'[()]').finditer(text, start):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return match.start()
  return len(text)


@functools.lru_cache(maxsize=4096)
def _leaves(text: str) -> tuple[_Leaf, ...]:
  """Returns bits and shape of each array of a type."""
  return tuple(
    (
      int(match[2]) if match[2] else 8,
      tuple(int(n) for n in match[3].replace('<=', '').split(',') if n),
    )
    for match in re.finditer(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,<=]*)\]', text)
  )


def _size(leaf: _Leaf) -> int:
  bits, shape = leaf
  return -(-bits * math.prod(shape) // 8)


def _update_at(update: Instruction) -> int:
  """Returns which operand is written into the first one."""
  # Operands of a scatter: targets, indices, updates; as many of the first and
  # last as there are results.
  return 1 if update.opcode == 'dynamic-update-slice' else -1
