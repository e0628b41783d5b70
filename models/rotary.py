"""How fast each pair of features turns in rotary positions, with scaling.

h half the head dim.
"""

import math

import numpy as np

_KINDS = {'linear': 1, 'llama3': 4}


def parse(scaling: str) -> tuple[str, tuple[float, ...]]:
  """Reads `model.rope_scaling`: '', 'linear:F' or 'llama3:F:LOW:HIGH:CONTEXT'.

  Raises:
    ValueError: it is neither, or a number is out of its range.
  """
  if not scaling:
    return '', ()
  kind, *parts = scaling.split(':')
  try:
    numbers = tuple(float(part) for part in parts)
  except ValueError:
    numbers = ()
  fits = kind in _KINDS and len(numbers) == _KINDS[kind]
  fits = fits and all(0 < n < math.inf for n in numbers)
  if not fits or (kind == 'llama3' and not numbers[1] < numbers[2]):
    raise ValueError(
      f'model.rope_scaling={scaling!r}: give linear:FACTOR or '
      'llama3:FACTOR:LOW:HIGH:CONTEXT, numbers above 0, LOW below HIGH'
    )
  return kind, numbers


def frequencies(half: int, base: float, scaling: str) -> np.ndarray:
  """Returns the angles by which a position turns the pairs, float32[h].

  'linear' divides all by the factor (arXiv 2306.15595). 'llama3' divides those
  that turn less than LOW times in CONTEXT tokens, leaves those that turn more
  than HIGH times, and goes evenly from one to the other between (Llama 3.1, as
  `transformers` has it in modeling_rope_utils.py).
  """
  plain_h = base ** -(np.arange(half, dtype=np.float32) / np.float32(half))
  kind, numbers = parse(scaling)
  if kind == 'linear':
    return (plain_h / numbers[0]).astype(np.float32)
  if kind == 'llama3':
    factor, low, high, context = numbers
    turns_h = context * plain_h / (2 * math.pi)
    kept_h = np.clip((turns_h - low) / (high - low), 0, 1)
    plain_h = kept_h * plain_h + (1 - kept_h) * plain_h / factor
  return plain_h.astype(np.float32)
