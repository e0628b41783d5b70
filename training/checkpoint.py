"""Asynchronous Orbax checkpoints of state and metadata, with checksums.

Checksums reveal torn and changed checkpoints before they are used. With several
processes, each computes those of the files that it wrote, and verifies an equal
share of all files when the run restarts.

Processes that share no disk write to copies of a directory in a bucket. There,
each array is a folder of chunks, to which each process adds some (Zarr), rather
than one database that the first process merges.
"""

from collections.abc import Callable, Set
from concurrent import futures
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
import threading
from typing import Any

import jax
from jax import numpy as jnp
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from steepest.data import buckets, reading
from steepest.models import layers
from steepest.training import processes, state as state_lib
from steepest.training.metrics import write_json
from steepest.training.state import TrainState

CHECKSUMS = 'checksums.json'
# Beside the directory, so that an emptied directory is noticed.
_LATEST = 'latest_checkpoint.json'
# What the loop saves beside the state, as kinds of reading.KINDS.
_BOOKS = {
  'seconds': 'object of numbers',
  'losses': 'object of numbers',
  'data_fingerprint': 'text',
  'shapes': 'object',
  'rows': '?count',
}
# What the first process tells the others when there is no step.
_NONE = -1
# Files read in parallel, and how long to wait for other processes.
_THREADS = 8
_SEAL_MINUTES = 20


class Checkpointer:
  """Checkpoints of one run, named by the steps done.

  A checkpoint counts once it was read back and its checksums stand beside it;
  only then are older ones deleted. If one cannot be written, a warning says so
  and earlier ones stay.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    kept: int,
    read_only: bool = False,
    warn: Callable[[str], None] | None = None,
    check: Callable[[], None] = lambda: None,
    stage: buckets.Stage | None = None,
  ):
    """Opens the directory.

    Args:
      directory: for all checkpoints, created if missing.
      kept: how many of the latest checkpoints to keep.
      read_only: change nothing there.
      warn: told of checkpoints that are damaged or could not be written; by
        default they are written to stderr.
      check: raises a ValueError if another attempt owns the run; from then on
        nothing is written or deleted.
      stage: of the directory, if each process has its own copy of it.
    """
    self.directory = pathlib.Path(directory).absolute()
    self._kept = kept
    self._read_only = read_only
    self._warn = warn or _to_stderr
    self._check_attempt = check
    self._finishing: threading.Thread | None = None
    self._written = threading.Event()
    self._written.set()
    self._failure: str | None = None
    self._alone = stage is not None
    self._stage = stage or buckets.Stage(self.directory)
    # Whether this process looks after the directory.
    self._keeps = self._alone or jax.process_index() == 0
    if not read_only and self._keeps:
      self._clear_unfinished()
    first: int | None = 0
    arrays: dict[str, Any] = {}
    if self._alone:
      self.directory.mkdir(parents=True, exist_ok=True)
      # Each process acts like the first one, in its own directory.
      first = None
      handler = ocp.type_handlers.ArrayHandler(primary_host=None)
      registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, handler)
      )
      arrays = {'use_ocdbt': False, 'type_handler_registry': registry}
    multiprocessing = ocp.options.MultiprocessingOptions(primary_host=first)
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        enable_async_checkpointing=not read_only,
        read_only=read_only,
        create=not self._alone,
        # Of the other processes, Orbax would write before these are there.
        async_options=ocp.AsyncOptions(
          create_directories_asynchronously=not self._alone
        ),
        multiprocessing_options=multiprocessing,
      ),
      # Compression would hold a second copy in memory until it is written, and
      # save only some eight percent of the disk space.
      item_handlers={
        'state': ocp.PyTreeCheckpointHandler(
          use_compression=False,
          multiprocessing_options=multiprocessing,
          **arrays,
        ),
        'books': ocp.JsonCheckpointHandler(
          multiprocessing_options=multiprocessing
        ),
      },
    )

  def latest(self) -> int | None:
    """Returns the steps done in the newest intact checkpoint.

    Reports newer, damaged ones and, unless read-only, moves them aside.

    Raises:
      ValueError: there are checkpoints, but none is intact.
    """
    damage: dict[int, str] = {}
    while True:
      sealed = set(_steps(self.directory, verified=True)) - set(damage)
      found = _told(max(sealed, default=_NONE))
      check = functools.partial(
        verify, self.directory / str(found), self._alone
      )
      try:
        if found != _NONE:
          processes.together(check)
        break
      except ValueError as e:
        damage[found] = str(e)
    if found == _NONE and damage:
      raise ValueError(
        f'no checkpoint in {self.directory} is intact: '
        f'{damage[max(damage)]}; restore it or use another --workdir'
      )
    if found == _NONE:
      found = _told(max(_steps(self.directory), default=_NONE))
    elif self._keeps:
      self._leave(found, damage)
    self._manager.reload()
    return None if found == _NONE else found

  def recorded(self) -> int | None:
    """Returns the steps of the newest checkpoint that was ever verified."""
    path = self.directory.with_name(_LATEST)
    if not path.exists():
      return None
    try:
      return int(reading.parse(path.read_text('utf-8'))['steps'])
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f'{path} is damaged: {error!r}: delete it') from error

  def save(
    self, state: TrainState, steps: int, metadata: dict[str, Any]
  ) -> None:
    """Starts writing; earlier checkpoints stay until this one is verified.

    Waits until the previous one is written and the one before that verified.

    Args:
      state: copied to the host before this returns.
      steps: steps done, also the position in the data.
      metadata: JSON values that survive restarts.
    """
    self._written.wait()
    self._ask_once()
    self._check_attempt()
    self._clear_unverified(steps)
    metadata = {**metadata, 'shapes': _shapes(state.params)}
    try:
      self._manager.save(
        steps,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state), books=ocp.args.JsonSave(metadata)
        ),
      )
    except (OSError, ValueError) as e:
      self._give_up(steps, e)
      return
    self._written = threading.Event()
    self._finishing = threading.Thread(
      target=self._finish, args=(steps, self._written, self._finishing)
    )
    self._finishing.start()

  def restore(
    self, target: TrainState, steps: int
  ) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state, on the target's devices, and the metadata.

    Args:
      target: ShapeDtypeStructs with shardings.
      steps: the checkpoint's.

    Raises:
      ValueError: the checkpoint is of another model.
    """
    metadata = self.metadata(steps)
    self._check(metadata['shapes'], _shapes(target.params), steps)
    restored = self._manager.restore(
      steps,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          item=target,
          restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        )
      ),
    )
    bad = _not_finite(restored['state'])
    if bad:
      raise ValueError(
        f'checkpoint {self.directory / str(steps)}: {bad} contains '
        'non-finite numbers, which no run saves: restore it or delete it'
      )
    return restored['state'], metadata

  def restore_run(
    self, setup: state_lib.Setup, steps: int
  ) -> tuple[TrainState, dict[str, Any]]:
    """Like `restore`, whether or not the saving run stacked layers."""
    if self._stacked(steps) == setup.model.scan_layers:
      return self.restore(setup.shapes, steps)
    other = state_lib.other_form(setup)
    state, metadata = self.restore(other.shapes, steps)
    return state_lib.restack(setup, state), metadata

  def restore_model(self, setup: state_lib.Setup, steps: int) -> Any:
    """Returns only the parameters, for a `setup` that stacks no layers."""
    if not self._stacked(steps):
      return self.restore_params(setup.shapes.params, steps)
    other = state_lib.other_form(setup)
    params = layers.unstack(self.restore_params(other.shapes.params, steps))
    return jax.device_put(params, setup.shardings.params)

  def _stacked(self, steps: int) -> bool:
    shapes = self.metadata(steps)['shapes']
    return any(path.startswith(f'{layers.STACKED}/') for path in shapes)

  def restore_params(self, target: Any, steps: int) -> Any:
    """Returns only the parameters; `target` as in `restore`."""
    self._check(self.metadata(steps)['shapes'], _shapes(target), steps)
    item = {'params': target}
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      return reader.restore(
        self.directory / str(steps) / 'state',
        args=ocp.args.PyTreeRestore(
          item=item, restore_args=restore_args, partial_restore=True
        ),
      )['params']

  def metadata(self, steps: int) -> dict[str, Any]:
    """Returns the JSON values saved beside the state."""
    where = str(self.directory / str(steps))
    try:
      restored = self._manager.restore(
        steps, args=ocp.args.Composite(books=ocp.args.JsonRestore())
      )
    except (ValueError, RecursionError) as error:
      line = str(error).partition('\n')[0]
      raise ValueError(f'checkpoint {where}: damaged: {line}') from error
    reading.require(restored['books'], _BOOKS, f'checkpoint {where}')
    return restored['books']

  def wait(self) -> None:
    """Returns once every started checkpoint is on disk or has failed."""
    if self._finishing is not None:
      self._finishing.join()
      self._finishing = None
      self._ask_once()

  def _ask_once(self) -> None:
    # Orbax raises each error once in every thread that waits.
    with contextlib.suppress(OSError, ValueError):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and releases the writer's threads.

    Raises:
      OSError: the last checkpoint could not be written.
    """
    self.wait()
    self._manager.close()
    if self._failure is not None:
      raise OSError(
        f'{self._failure}; make sure that it can be written (space, disk, '
        'other processes) and run the same command again'
      )

  def _finish(
    self,
    steps: int,
    written: threading.Event,
    before: threading.Thread | None,
  ) -> None:
    """Waits for a checkpoint, verifies it, then deletes what it replaces."""
    try:
      try:
        self._manager.wait_until_finished()
      finally:
        if before is not None:
          before.join()
        written.set()
      self._seal(self.directory / str(steps))
      if jax.process_index() == 0 and self._has_the_run():
        write_json(self.directory.with_name(_LATEST), {'steps': steps})
      if self._keeps and self._has_the_run():
        kept = _steps(self.directory, verified=True)[-self._kept :]
        for old in _steps(self.directory):
          if old < min(kept, default=0):
            shutil.rmtree(self.directory / str(old))
    except (OSError, ValueError, jax.errors.JaxRuntimeError) as e:
      self._give_up(steps, e)
    else:
      self._failure = None

  def _seal(self, directory: pathlib.Path) -> None:
    """Has each process read back its files, and one record the checksums.

    Runs no JAX computation, so training continues meanwhile.
    """
    index, stage = jax.process_index(), self._stage
    # Hidden files stay on this machine.
    hidden = '' if self._alone else '.'
    part = lambda i: directory / f'{hidden}{i}.{CHECKSUMS}'
    barrier = functools.partial(
      ocp.multihost.get_barrier_sync_fn(), timeout_ms=_SEAL_MINUTES * 60_000
    )
    try:
      if self._has_the_run():
        write_json(part(index), checksums(directory, self._owns))
        stage.push()
    finally:
      # A process that failed leaves no file.
      barrier(key=f'written {directory.name}')
    try:
      if index == 0 and self._has_the_run():
        stage.pull(directory, _parts)
        files: dict[str, Any] = {}
        for i in range(jax.process_count()):
          files |= reading.json_object(part(i))
          part(i).unlink()
        write_checksums(directory, files)
        stage.push()
    finally:
      if self._alone:
        barrier(key=f'sealed {directory.name}')
    # The others get the seal.
    stage.pull(directory)

  def _owns(self, path: pathlib.Path) -> bool:
    """Returns whether this process answers for a file of a checkpoint."""
    if not self._alone:
      return _writer(path) == jax.process_index()
    name = path.relative_to(self._stage.directory).as_posix()
    return jax.process_index() == 0 or bool(buckets.part({name}))

  def _give_up(self, steps: int, error: Exception) -> None:
    if not self._has_the_run():
      return
    reason = ' '.join(str(error).split())
    self._failure = f'checkpoint {self.directory / str(steps)}: {reason}'
    left = _steps(self.directory, verified=True)
    stays = f'the one of step {left[-1]} stays' if left else 'there is none yet'
    self._warn(f'warning: {self._failure}; {stays}, training continues')
    if self._keeps:
      # The next one may already be being written.
      self._clear_unfinished(str(steps))
      self._clear_unverified(steps)

  def _has_the_run(self) -> bool:
    try:
      self._check_attempt()
    except ValueError:
      return False
    return True

  def _clear_unverified(self, steps: int) -> None:
    """Removes a checkpoint that its writer, maybe another, did not finish."""
    at = self.directory / str(steps)
    if self._keeps and not has_checksums(at):
      shutil.rmtree(at, ignore_errors=True)

  def _clear_unfinished(self, steps: str = '*') -> None:
    """Frees the space of interrupted writes."""
    for path in self.directory.glob(f'{steps}.orbax-checkpoint-tmp*'):
      shutil.rmtree(path, ignore_errors=True)

  def _leave(self, steps: int, damage: dict[int, str]) -> None:
    """Makes an intact checkpoint the newest; says why later ones are not."""
    if not self._read_only:
      # The others were interrupted before they were verified.
      for later in set(_steps(self.directory)) - set(damage):
        if later > steps:
          shutil.rmtree(self.directory / str(later), ignore_errors=True)
    for later, error in damage.items():
      self._warn(
        f'warning: checkpoint of step {later} is not used, but that of step '
        f'{steps}: {error}'
      )
      if not self._read_only:
        self._put_aside(later)

  def _put_aside(self, steps: int) -> None:
    aside = self.directory / f'damaged-{steps}'
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(self.directory / str(steps), aside)

  def _check(self, saved: Any, wanted: Any, steps: int) -> None:
    if saved == wanted:
      return
    for path in sorted(saved | wanted):
      if saved.get(path) != wanted.get(path):
        raise ValueError(
          f'checkpoint {self.directory / str(steps)} is of another model: '
          f'{path} has shape {saved.get(path)} there, {wanted.get(path)} '
          'here; use its own config or another --workdir'
        )


def checksums(
  directory: pathlib.Path,
  owns: Callable[[pathlib.Path], bool] = lambda path: True,
) -> dict[str, dict[str, Any]]:
  """Reads files of a complete checkpoint and returns sizes and checksums.

  Args:
    directory: one checkpoint's, no longer being written.
    owns: which of its files to read.

  Raises:
    OSError: a file cannot be read.
  """
  names = [
    str(path.relative_to(directory))
    for path in sorted(directory.rglob('*'))
    if path.is_file() and CHECKSUMS not in path.name and owns(path)
  ]
  return {
    name: {'bytes': (directory / name).stat().st_size, 'sha256': sha256}
    for name, sha256 in _sha256(directory, names).items()
  }


def _parts(names: Set[str]) -> set[str]:
  """Chooses the checksums of single processes."""
  return {name for name in names if name.endswith(f'.{CHECKSUMS}')}


def _writer(path: pathlib.Path) -> int:
  """Returns the process that wrote a file, from Orbax's folder name.

  Files outside such folders count as the first one's.
  """
  folders = [p for p in path.parts if p.startswith('ocdbt.process_')]
  number = folders[-1].rpartition('_')[2] if folders else '0'
  return int(number) if number.isdigit() else 0


def write_checksums(
  directory: pathlib.Path, files: dict[str, dict[str, Any]]
) -> None:
  """Writes a checkpoint's checksums, which seals it."""
  temporary = directory / f'.{CHECKSUMS}.tmp'
  with temporary.open('w', encoding='utf-8') as file:
    json.dump({'files': files}, file, indent=1)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, directory / CHECKSUMS)


def has_checksums(directory: pathlib.Path) -> bool:
  """Returns whether a checkpoint was read back after it was written."""
  return (directory / CHECKSUMS).exists()


def verify(directory: pathlib.Path, alone: bool = False) -> None:
  """Compares the files of a checkpoint with their checksums.

  With several processes, each reads its share, unless it has a copy `alone`.

  Raises:
    ValueError: a file differs from what was written; names the first one.
  """
  try:
    files = reading.parse((directory / CHECKSUMS).read_text('utf-8'))['files']
    wanted = {
      name: (int(file['bytes']), str(file['sha256']))
      for name, file in files.items()
    }
  except (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
  ) as error:
    raise ValueError(
      f'{directory / CHECKSUMS} is damaged: {error!r}'
    ) from error
  for name, (size, _) in wanted.items():
    path = directory / name
    if not path.is_file():
      raise ValueError(f'{path} is missing')
    if path.stat().st_size != size:
      raise ValueError(
        f'{path} has {path.stat().st_size} bytes, {size} were written'
      )
  by_size = sorted(wanted, key=lambda name: (wanted[name][0], name))
  share = by_size
  if not alone:
    share = by_size[jax.process_index() :: jax.process_count()]
  for name, sha256 in _sha256(directory, share).items():
    if sha256 != wanted[name][1]:
      raise ValueError(f'{directory / name} has changed since it was written')


def _sha256(directory: pathlib.Path, names: list[str]) -> dict[str, str]:
  def read(name: str) -> str:
    with (directory / name).open('rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()

  with futures.ThreadPoolExecutor(_THREADS) as pool:
    return dict(zip(names, pool.map(read, names)))


def _told(steps: int) -> int:
  """Returns the first process's value; others may see files later."""
  if jax.process_count() == 1:
    return steps
  return int(multihost_utils.broadcast_one_to_all(np.int32(steps)))


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
  return [jnp.isfinite(leaf).all() for leaf in leaves]


def _not_finite(state: Any) -> str:
  """Returns the path of a leaf with a non-finite number, or ''."""
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  }
  finite = jax.device_get(_finite(list(leaves.values())))
  return next((name for name, ok in zip(leaves, finite) if not ok), '')


def _shapes(params: Any) -> dict[str, list[int]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): list(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def _to_stderr(text: str) -> None:
  # If the disk is full, the file behind stderr may be on it.
  with contextlib.suppress(OSError):
    print(text, file=sys.stderr, flush=True)


def _steps(directory: pathlib.Path, verified: bool = False) -> list[int]:
  """Returns the steps of the complete checkpoints, in order."""
  if not directory.is_dir():
    return []
  return sorted(
    int(path.name)
    for path in directory.iterdir()
    if path.name.isdigit() and (not verified or has_checksums(path))
  )
