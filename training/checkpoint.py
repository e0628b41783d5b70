"""Asynchronous Orbax checkpoints of state, step and bookkeeping."""

import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from steepest.training.step import TrainState


class Checkpointer:
  """Checkpoints of one run, named by the steps done."""

  def __init__(
    self,
    directory: str | os.PathLike[str],
    kept: int,
    read_only: bool = False,
  ):
    """Opens the directory.

    Args:
      directory: of all checkpoints, made if it does not exist.
      kept: latest checkpoints to keep.
      read_only: change nothing there.
    """
    self.directory = pathlib.Path(directory).absolute()
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else kept,
        enable_async_checkpointing=not read_only,
        read_only=read_only,
      ),
    )

  def latest(self) -> int | None:
    """Returns the steps done in the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(self, state: TrainState, steps: int, books: dict[str, Any]) -> None:
    """Starts writing; earlier checkpoints stay until it is complete.

    Args:
      state: copied to the host before this returns.
      steps: steps done, the position in the data too.
      books: JSON values carried through restarts.
    """
    books = {**books, 'shapes': _shapes(state.params)}
    self._manager.save(
      steps,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), books=ocp.args.JsonSave(books)
      ),
    )

  def restore(
    self, target: TrainState, steps: int
  ) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state, on the target's devices, and the books.

    Args:
      target: ShapeDtypeStructs with shardings.
      steps: of the checkpoint.

    Raises:
      ValueError: the checkpoint is of another model.
    """
    books = self.books(steps)
    self._check(books['shapes'], _shapes(target.params), steps)
    restored = self._manager.restore(
      steps,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(target)),
    )
    return restored['state'], books

  def restore_params(self, target: Any, steps: int) -> Any:
    """Returns the parameters alone; `target` as in `restore`."""
    self._check(self.books(steps)['shapes'], _shapes(target), steps)
    item = {'params': target}
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      return reader.restore(
        self.directory / str(steps) / 'state',
        args=ocp.args.PyTreeRestore(
          item=item, restore_args=restore_args, partial_restore=True
        ),
      )['params']

  def books(self, steps: int) -> dict[str, Any]:
    """Returns the JSON values saved beside the state."""
    restored = self._manager.restore(
      steps, args=ocp.args.Composite(books=ocp.args.JsonRestore())
    )
    return restored['books']

  def wait(self) -> None:
    """Returns once everything started is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and releases the writer's threads."""
    self._manager.close()

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


def _shapes(params: Any) -> dict[str, list[int]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): list(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
