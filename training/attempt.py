"""The attempt that has a run's directory: the latest; earlier ones stop.

A machine that was cut off and comes back would go on with a run that has been
started again elsewhere. So each attempt writes its id into env.json, and reads
it again before it adds to what the directory holds.
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any
import uuid

from steepest.data import reading
from steepest.training import environment, metrics

_FILE = 'env.json'
_ATTEMPT = {'number': 'count', 'began': '?number of at least 0'}


class Superseded(ValueError):
  """The run's directory is another attempt's, or gone."""


class Attempt:
  """This process's attempt at a run.

  Attributes:
    began: when the first attempt at it did, as of time.time().
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    about: Mapping[str, Any],
    began: float,
    goes_on: bool,
  ):
    """Takes the directory over and writes its env.json.

    Which slot of an engine it runs on, and of which node, is what the engine
    put into STEEPEST_SLOT and STEEPEST_NODE.

    Args:
      workdir: the directory.
      about: what env.json says besides.
      began: when this one did, as of time.time().
      goes_on: whether an earlier attempt left anything to go on with.
    """
    before = _read(workdir)
    self.began = began
    if goes_on and before and 'began' in before:
      self.began = before['began']
    self._workdir = workdir
    self._id = uuid.uuid4().hex
    attempt = {
      'id': self._id,
      'number': before['number'] + 1 if before else 1,
      'began': self.began,
      'slot': os.environ.get('STEEPEST_SLOT'),
      'node': os.environ.get('STEEPEST_NODE'),
    }
    env = {**environment.describe(), **about, 'attempt': attempt}
    metrics.write_json(workdir / _FILE, env)

  def check(self) -> None:
    """Raises Superseded once the directory is another attempt's, or gone."""
    if not (self._workdir / _FILE).exists():
      raise Superseded(
        f'{self._workdir / _FILE} is gone: was the directory removed? This run '
        'stops'
      )
    now = _read(self._workdir)
    if now is None or now['id'] == self._id:
      return
    where = [f'{key} {now[key]}' for key in ('slot', 'node') if now[key]]
    raise Superseded(
      f'{self._workdir}: attempt {now["number"]} has taken this run over'
      + (f' ({", ".join(where)})' if where else '')
      + ': this one stops and leaves it alone'
    )


def _read(workdir: pathlib.Path) -> dict[str, Any] | None:
  """Returns the latest attempt; None without one, as in older directories."""
  path = workdir / _FILE
  if not path.exists():
    return None
  try:
    env = reading.json_object(path)
    reading.require(env, {'attempt': '?object'}, str(path))
    attempt = env['attempt'] if 'attempt' in env else None
    if attempt is not None:
      reading.require(attempt, _ATTEMPT, str(path))
    return attempt
  except ValueError:
    # Damaged: whoever begins writes another.
    return None
