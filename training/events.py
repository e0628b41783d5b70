"""What happened to a run besides its steps: events.jsonl and one line each."""

import contextlib
import json
import os
import pathlib
import sys
import time

NAME = 'events.jsonl'


class Events:
  """Appends to events.jsonl of a run and writes to stderr.

  Neither fails where the disk is full: an event is told, not relied on.
  """

  def __init__(self, workdir: str | os.PathLike[str], writes: bool):
    """Takes note of where to write.

    Args:
      workdir: of the run.
      writes: False for processes that leave writing to another.
    """
    self._path = pathlib.Path(workdir) / NAME
    self._writes = writes

  def add(self, kind: str, step: int, text: str) -> None:
    """Writes one event down.

    Args:
      kind: 'checkpoint' or 'metrics'.
      step: that the run was at.
      text: one line for people.
    """
    if not self._writes:
      return
    event = {'step': step, 'kind': kind, 'text': text, 'time': time.time()}
    with contextlib.suppress(OSError):
      print(f'{kind} at step {step}: {text}', file=sys.stderr, flush=True)
    with (
      contextlib.suppress(OSError),
      self._path.open('a', encoding='utf-8') as file,
    ):
      file.write(json.dumps(event) + '\n')
