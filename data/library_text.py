"""Text that every machine has: the modules of the running Python's library."""

import pathlib
import sysconfig

import numpy as np

# Byte values: the vocabulary.
VOCAB_SIZE = 256
_BYTES = 4_000_000
_NOT_CODE = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages'}


def read() -> np.ndarray:
  """Returns the first 4 MB of the library's modules as uint8 token ids.

  Modules come in the order of their paths, so that the same Python gives the
  same text on every machine.

  Raises:
    FileNotFoundError: the library's source is not there.
  """
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  paths = {
    path.relative_to(root).as_posix(): path
    for path in root.rglob('*.py')
    if not _NOT_CODE & set(path.relative_to(root).parts)
  }
  text = bytearray()
  for name in sorted(paths):
    text += paths[name].read_bytes()
    if len(text) >= _BYTES:
      break
  if len(text) < _BYTES:
    raise FileNotFoundError(
      f'{root}: {len(text)} bytes of *.py, {_BYTES} are needed: use a Python '
      "that has its library's source"
    )
  return np.frombuffer(bytes(text[:_BYTES]), np.uint8)


def batch(
  text: np.ndarray, batch_size: int, context: int, seed: int, step: int
) -> dict[str, np.ndarray]:
  """Returns random windows, a function of the seed and the step.

  Args:
    text: token ids.
    batch_size: windows.
    context: tokens of a window.
    seed: of the run.
    step: of the run.

  Returns:
    `inputs` and `targets`, batch_size × context token ids.
  """
  generator = np.random.default_rng((seed, step))
  starts = generator.integers(0, len(text) - context, batch_size)
  windows = text[starts[:, None] + np.arange(context + 1)].astype(np.int32)
  return {'inputs': windows[:, :-1], 'targets': windows[:, 1:]}
