"""Which source each training row comes from: exact, without any state."""

from collections.abc import Mapping, Sequence
import difflib
from fractions import Fraction
import math


class Mixture:
  """Interleaves endless sources in fixed proportions.

  Row n belongs to the source whose quota grows from n to n + 1, so the counts
  of any prefix of S sources are within (S - 1) / 2 of `n · weight /
  sum(weights)`, as each of S - 1 roundings is off by half a row at most, and
  exact where all of these are whole numbers.
  """

  def __init__(self, weights: Sequence[int]):
    """Takes one positive integer for each source."""
    if not weights or min(weights) <= 0:
      raise ValueError(f'weights must be positive: {list(weights)}')
    self._weights = tuple(weights)
    self._total = sum(weights)

  def counts(self, n: int) -> list[int]:
    """Returns how many of the first n rows each source gives."""
    counts = []
    total = self._total
    for weight in self._weights:
      rest = _round_ratio(n * (total - weight), total)
      counts.append(n - rest)
      n, total = rest, total - weight
    return counts

  def locate(self, n: int) -> tuple[int, int]:
    """Returns the source of row n and the row's number within it."""
    low, high, total = n, n + 1, self._total
    for source, weight in enumerate(self._weights):
      low_rest = _round_ratio(low * (total - weight), total)
      high_rest = _round_ratio(high * (total - weight), total)
      if low_rest == high_rest:
        return source, low - low_rest
      low, high, total = low_rest, high_rest, total - weight
    raise AssertionError(f'row {n} belongs to no source')


def parse(text: str, tokens: Mapping[str, int]) -> dict[str, int]:
  """Reads `data.mixture`.

  Args:
    text: 'NAME:WEIGHT,…' or '' for proportions of `tokens`.
    tokens: what each source holds, in tokens or windows.

  Returns:
    Integer weights of the sources that take part, in the order of `tokens`.

  Raises:
    ValueError: an unknown source, a weight that is no positive number.
  """
  if not text:
    return {name: held for name, held in tokens.items() if held}
  weights: dict[str, Fraction] = {}
  for item in text.split(','):
    name, _, weight = item.strip().rpartition(':')
    if name not in tokens:
      near = difflib.get_close_matches(name, tokens, 1)
      hint = f'did you mean {near[0]!r}? ' if near else ''
      raise ValueError(
        f'data.mixture names the unknown source {name!r}: {hint}'
        f'the data hold {", ".join(tokens)}'
      )
    try:
      weights[name] = Fraction(weight)
    except (ValueError, ZeroDivisionError):
      weights[name] = Fraction(0)
    if weights[name] <= 0:
      raise ValueError(
        f'data.mixture gives {name!r} the weight {weight!r}: give a positive '
        'number, or leave the source out'
      )
  scale = math.lcm(*(w.denominator for w in weights.values()))
  return {n: int(weights[n] * scale) for n in tokens if n in weights}


def _round_ratio(numerator: int, denominator: int) -> int:
  return (2 * numerator + denominator) // (2 * denominator)
