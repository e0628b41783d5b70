"""Order of documents, and which of them are for validation.

D documents. Both depend on the documents' hashes and the seed, not on the
order in which they were read.
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


def keys(hashes_D: np.ndarray, seed: int) -> np.ndarray:
  """Returns uint64[D], in whose order the seed puts the documents."""
  key = hashlib.sha256(str(seed).encode()).digest()[:8]
  x = hashes_D ^ np.frombuffer(key, '<u8')
  # Finalizer of SplitMix64, so that other seeds give unrelated orders.
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
