"""Branches: runs that go on from a checkpoint of another run, their parent.

Where two runs differ in nothing but what comes after some step, the steps up
to it need doing once. A branch's workdir is a whole one: it holds the parent's
rows and checkpoint of that step and goes on like a run that was interrupted
there. branch.json says where it comes from.
"""

from collections.abc import Mapping
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

from steepest.training import integrity, metrics
from steepest.training.checkpoint import Checkpointer

NAME = 'branch.json'


def can_start(parent: pathlib.Path, steps: int) -> bool:
  """Returns whether a run has a verified checkpoint after `steps` steps."""
  return integrity.is_sealed(_checkpoint(parent, steps))


def has_begun(workdir: pathlib.Path) -> bool:
  """Returns whether a workdir holds a checkpoint to go on from."""
  directory = workdir / 'checkpoints'
  if not directory.is_dir():
    return False
  return any(path.name.isdigit() for path in directory.iterdir())


def start(parent: pathlib.Path, steps: int, workdir: pathlib.Path) -> None:
  """Prepares a run's workdir so that it goes on from its parent's checkpoint.

  Does nothing where the run has a checkpoint of its own. The checkpoint's files
  are hard links where the file system has them, so they take no room twice and
  the parent may be deleted.

  Args:
    parent: the workdir of a run that has the same steps up to `steps`.
    steps: of one of its checkpoints (checkpoints_at).
    workdir: of the branch.

  Raises:
    FileNotFoundError: the parent has no such checkpoint.
    ValueError: the checkpoint is damaged.
  """
  if has_begun(workdir):
    return
  (workdir / NAME).unlink(missing_ok=True)
  if not can_start(parent, steps):
    raise FileNotFoundError(
      f'{parent} has no checkpoint of step {steps}: set checkpoints_at there'
    )
  target = _checkpoint(workdir, steps)
  copy = target.with_name('.branch')
  shutil.rmtree(copy, ignore_errors=True)
  shutil.copytree(_checkpoint(parent, steps), copy, copy_function=_link)
  # What is read here is what the branch will read.
  integrity.check(copy)
  rows = [r for r in metrics.read_rows(parent) if r['step'] < steps]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  temporary = workdir / '.metrics.jsonl.tmp'
  temporary.write_text(text, 'utf-8')
  os.replace(temporary, workdir / 'metrics.jsonl')
  reader = Checkpointer(parent / 'checkpoints', 1, read_only=True)
  origin = {
    'parent': os.path.relpath(parent, workdir),
    'steps': steps,
    'seconds': reader.books(steps)['seconds']['train'],
    'checksums': _sha256(copy / integrity.NAME),
  }
  reader.close()
  metrics.write_json(workdir / NAME, origin)
  os.replace(copy, target)


def spent(
  workdir: pathlib.Path, summary: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Returns what a branch itself took; None where a run is none.

  Args:
    workdir: of a run.
    summary: of that run, as if it had done all its steps alone.

  Returns:
    `parent` and `steps` of branch.json as `parent` and `shared_steps`; `steps`,
    `tokens`, `flops` and training `seconds` of the rest, the first three in
    proportion to the steps.
  """
  path = workdir / NAME
  if not path.exists():
    return None
  origin = json.loads(path.read_text('utf-8'))
  share = 1 - origin['steps'] / summary['steps']
  return {
    'parent': origin['parent'],
    'shared_steps': origin['steps'],
    'steps': summary['steps'] - origin['steps'],
    'tokens': round(summary['tokens'] * share),
    'flops': summary['flops'] * share,
    'seconds': summary['seconds'] - origin['seconds'],
  }


def _checkpoint(workdir: pathlib.Path, steps: int) -> pathlib.Path:
  return workdir / 'checkpoints' / str(steps)


def _link(source: str, target: str) -> None:
  """Links a file, or copies it where that cannot be done."""
  with contextlib.suppress(OSError):
    os.link(source, target)
    return
  shutil.copy2(source, target)


def _sha256(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()
