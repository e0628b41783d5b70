"""Writes metrics to Weights & Biases, an optional package.

`pip install 'steepest[wandb]'` installs it. Users run `wandb login`, or set
WANDB_MODE=offline and run `wandb sync` later: no key passes through here.
"""

from collections.abc import Callable, Mapping
import os
import pathlib
from typing import Any
import uuid

from steepest.data import files

_ID = 'wandb-id.txt'
# Part of the names of per-layer metrics, which training/loop.py logs.
_LAYER = '/layer/'


class WandbWriter:
  """One W&B run per workdir, which a restart continues.

  An agent of a W&B sweep chooses the run, by WANDB_RUN_ID.

  Training does not depend on it: a failure is reported, and nothing more is
  sent until the run is restarted.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    project: str,
    warn: Callable[[str], None],
  ):
    """Opens the run.

    Args:
      workdir: the run's directory; keeps its id.
      project: W&B project that shows it.
      warn: told once of a failure.

    Raises:
      ValueError: the package is not installed, or the run cannot be opened the
        very first time, when nothing is lost yet.
    """
    try:
      import wandb
    except ImportError as error:
      raise ValueError(
        f"wandb_project={project!r} needs wandb: pip install 'steepest[wandb]'"
      ) from error
    workdir = pathlib.Path(workdir)
    self._warn = warn
    self._run: Any = None
    self._hidden: set[str] = set()
    path = workdir / _ID
    known = path.read_text('utf-8').strip() if path.exists() else ''
    given = os.environ['WANDB_RUN_ID'] if 'WANDB_RUN_ID' in os.environ else ''
    name = known or given or uuid.uuid4().hex
    if not known:
      # Written first, so that a run killed meanwhile continues with this id.
      files.write(path, [name.encode()])
    try:
      self._run = wandb.init(
        project=project,
        name=workdir.absolute().name,
        dir=str(workdir),
        id=name,
        resume='allow',
      )
      # W&B's own step counter rejects steps that a restart repeats.
      self._run.define_metric('step')
      self._run.define_metric('*', step_metric='step')
    except Exception as error:  # The service's errors share no base class.
      if not known:
        path.unlink()
        raise ValueError(
          f'wandb_project={project!r}: {_said(error)}; `wandb login` first, or '
          'set WANDB_MODE=offline'
        ) from error
      self._give_up(error)
      return

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Sends one row."""
    self._try(lambda run: self._hide(run, scalars))
    self._try(lambda run: run.log({'step': step, **scalars}))

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Shows texts in the run's summary."""
    self._try(lambda run: run.summary.update(dict(texts)))

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Shows hyperparameters as the run's configuration."""
    self._try(
      lambda run: run.config.update(dict(hparams), allow_val_change=True)
    )

  def flush(self) -> None:
    """Does nothing: rows are sent in the background."""

  def close(self) -> None:
    """Returns once everything is sent or, offline, on disk."""
    self._try(lambda run: run.finish())

  def _hide(self, run: Any, scalars: Mapping[str, Any]) -> None:
    """Hides the panels of per-layer metrics; users can still add them."""
    for name in scalars.keys() - self._hidden:
      if _LAYER in name:
        run.define_metric(name, step_metric='step', hidden=True)
        self._hidden.add(name)

  def _try(self, do: Callable[[Any], object]) -> None:
    if self._run is None:
      return
    try:
      do(self._run)
    except Exception as error:  # The service's errors share no base class.
      self._give_up(error)

  def _give_up(self, error: Exception) -> None:
    self._run = None
    self._warn(
      f'Weights & Biases receives no more rows: {_said(error)}; all are in '
      'metrics.jsonl'
    )


def _said(error: Exception) -> str:
  """Returns the first line of an error."""
  return f'{type(error).__name__}: {error}'.splitlines()[0].strip(': ')[:200]
