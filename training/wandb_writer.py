"""Writer of metrics to Weights & Biases, an optional package.

`pip install 'steepest[wandb]'` installs it; `wandb login`, or
WANDB_MODE=offline and later `wandb sync`, is up to the user: no key passes
through here.
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any
import uuid

_ID = 'wandb-id.txt'


class WandbWriter:
  """One run there for each workdir; a restart goes on with it."""

  def __init__(self, workdir: str | os.PathLike[str], project: str):
    """Opens the run.

    Args:
      workdir: of the run; keeps its id.
      project: in which it is shown.

    Raises:
      ValueError: the package is not installed.
    """
    try:
      import wandb
    except ImportError as error:
      raise ValueError(
        f"wandb_project={project!r} needs: pip install 'steepest[wandb]'"
      ) from error
    workdir = pathlib.Path(workdir)
    self._run = wandb.init(
      project=project,
      name=workdir.absolute().name,
      dir=str(workdir),
      id=_id(workdir),
      resume='allow',
    )
    # Its own counter refuses steps that a restart does again.
    self._run.define_metric('step')
    self._run.define_metric('*', step_metric='step')

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Sends one row."""
    self._run.log({'step': step, **scalars})

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Shows texts in the run's summary."""
    self._run.summary.update(dict(texts))

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Shows hyperparameters as the run's configuration."""
    self._run.config.update(dict(hparams), allow_val_change=True)

  def flush(self) -> None:
    """Does nothing: rows are sent in the background."""

  def close(self) -> None:
    """Returns once everything is sent or, offline, on disk."""
    self._run.finish()


def _id(workdir: pathlib.Path) -> str:
  path = workdir / _ID
  if not path.exists():
    temporary = path.with_name(f'.{_ID}.tmp')
    temporary.write_text(uuid.uuid4().hex, 'utf-8')
    os.replace(temporary, path)
  return path.read_text('utf-8').strip()
