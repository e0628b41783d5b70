"""Only the latest attempt at a run owns its directory; earlier ones stop.

A machine that was cut off and comes back would continue a run that has been
restarted elsewhere. So each attempt writes its id into env.json, and checks it
before every write to the directory.
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
  """Another attempt owns the run's directory, or it is gone."""


class Attempt:
  """This process's attempt at a run.

  Attributes:
    began: start of the first attempt at it, as of time.time().
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    about: Mapping[str, Any],
    began: float,
    goes_on: bool,
  ):
    """Takes the directory over and writes its env.json.

    An engine names the slot and node that it runs on in STEEPEST_SLOT and
    STEEPEST_NODE.

    Args:
      workdir: the directory.
      about: other contents of env.json.
      began: start of this attempt, as of time.time().
      goes_on: whether an earlier attempt left anything to resume from.
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
    """Raises Superseded if another attempt owns the directory or it is gone."""
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
  """Returns the latest attempt; None without one, as in old directories."""
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
    # Damaged: the next attempt writes a new one.
    return None
