"""Documents of one source as two streams: training and validation.

D documents of N tokens in all. Both the split and the order depend on the
documents' hashes and the seed, not on the order in which they were read.
"""

import hashlib

import numpy as np


def validation_mask(
  hashes_D: np.ndarray, lengths_D: np.ndarray, wanted: int, most: int
) -> np.ndarray:
  """Chooses validation documents by their hashes.

  Documents are taken in the order of their hashes until `wanted` tokens are
  reached; one that would bring the sum above `most` is passed over.

  Args:
    hashes_D: uint64.
    lengths_D: tokens of each document.
    wanted: tokens to keep from training.
    most: tokens that may be kept.

  Returns:
    bool[D], True for validation.
  """
  mask_D = np.zeros(len(hashes_D), bool)
  total = 0
  for i in np.argsort(hashes_D, kind='stable'):
    if total >= min(wanted, most):
      break
    if total + lengths_D[i] <= most:
      mask_D[i] = True
      total += int(lengths_D[i])
  return mask_D


def order(hashes_D: np.ndarray, seed: int) -> np.ndarray:
  """Returns a permutation of D documents that the seed fixes."""
  key = hashlib.sha256(str(seed).encode()).digest()[:8]
  x = hashes_D ^ np.frombuffer(key, '<u8')
  # Finalizer of SplitMix64, so that other seeds give unrelated orders.
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return np.argsort(x ^ (x >> np.uint64(31)), kind='stable')


class Stream:
  """Documents in a new order, end to end, read piece by piece."""

  def __init__(
    self,
    tokens_N: np.ndarray,
    starts_D: np.ndarray,
    lengths_D: np.ndarray,
    order_K: np.ndarray,
  ):
    """Takes all documents of a source and the order of K of them."""
    self._tokens_N = tokens_N
    self._from_K = starts_D[order_K]
    self._at_K1 = np.concatenate([[0], np.cumsum(lengths_D[order_K])])

  def __len__(self) -> int:
    return int(self._at_K1[-1])

  def read(self, begin: int, end: int) -> np.ndarray:
    """Returns the tokens [begin, end)."""
    first = np.searchsorted(self._at_K1, begin, 'right') - 1
    last = np.searchsorted(self._at_K1, end, 'left')
    pieces = []
    for k in range(first, last):
      at = self._at_K1[k]
      low, high = max(begin, at), min(end, self._at_K1[k + 1])
      start = self._from_K[k] - at
      pieces.append(self._tokens_N[start + low : start + high])
    return np.concatenate(pieces)

  def begun(self, begin: int, end: int | None) -> int:
    """Counts the documents that begin in [begin, end), or from begin on."""
    starts_K = self._at_K1[:-1]
    first = np.searchsorted(starts_K, begin, 'left')
    last = len(starts_K) if end is None else np.searchsorted(starts_K, end)
    return int(last - first)
