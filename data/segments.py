"""Which document each token of a window belongs to, for document masks.

B is the sequences of a batch, T the context.
"""

import numpy as np


def segments(
  tokens_BxT: np.ndarray, eos_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers the documents of packed windows.

  A document ends with its end-of-text token, which belongs to it. A window
  may begin and end inside a document; the piece counts from 0, too.

  Args:
    tokens_BxT: token ids.
    eos_id: of the end-of-text token.

  Returns:
    Segment ids from 1 on, and positions that count from 0 in each segment,
    int32[B, T] both.
  """
  first_BxT = np.zeros(tokens_BxT.shape, bool)
  first_BxT[:, 0] = True
  first_BxT[:, 1:] = tokens_BxT[:, :-1] == eos_id
  segment_ids_BxT = np.cumsum(first_BxT, 1, dtype=np.int32)
  at_T = np.arange(tokens_BxT.shape[1], dtype=np.int32)
  starts_BxT = np.maximum.accumulate(np.where(first_BxT, at_T[None], 0), 1)
  return segment_ids_BxT, at_T[None] - starts_BxT
