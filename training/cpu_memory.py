"""Keeps freed memory in the process, which makes training on a CPU faster.

XLA allocates a step's temporary buffer anew each time. glibc maps and unmaps
large ones, so that the kernel clears every page again at every step
(docs/performance.md).
"""

import ctypes
import glob
import os
import sys

# Parameters of mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_LARGEST = 2**31 - 1


def keep() -> None:
  """Tells glibc to reuse large buffers; elsewhere does nothing.

  Must come before JAX starts its threads. Where there is an accelerator the
  host's memory is left to its defaults.
  """
  if not sys.platform.startswith('linux') or has_accelerator():
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return  # Another C library.
  mallopt(_MMAP_MAX, 0)
  mallopt(_TRIM_THRESHOLD, _LARGEST)
  # Arenas of other threads are too small for large buffers.
  mallopt(_ARENA_MAX, 1)


def has_accelerator() -> bool:
  """Returns whether JAX may find a GPU or TPU, without starting JAX.

  A process that starts it takes the accelerator from the others.
  """
  if os.environ.get('JAX_PLATFORMS') == 'cpu':
    return False
  return any(map(glob.glob, ('/dev/nvidia[0-9]*', '/dev/accel*', '/dev/kfd')))
