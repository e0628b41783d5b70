"""Submits a study's targets as separate jobs, for machines with more room.

Each is submitted as launch.submit would, once its search is done; `sent.json`
in its directory records where and when.
"""

import argparse
from collections.abc import Sequence
import datetime
import json
import pathlib

from ml_collections import ConfigDict

from steepest.data import buckets
from steepest.experiments import base
from steepest.launch.submitters import job as jobs, places
from steepest.training import metrics
from steepest.tuning import cells
from steepest.tuning.study import Run, target_runs

_SENT = 'sent.json'


def overrides(config: ConfigDict) -> tuple[str, ...]:
  """Returns a run's flags for launch.train: where it differs from base.py."""
  own = base.flatten(base.get_config())
  values = {
    key: value
    for key, value in base.flatten(config).items()
    if key not in own or value != own[key]
  }
  return ('--config=experiments/base.py', *jobs.overrides(values))


class Targets:
  """Submits the targets of a study to a place."""

  def __init__(self, place: str, options: argparse.Namespace, workdir: str):
    """Submits nothing yet.

    Args:
      place: as in launch/cli.py.
      options: values of the flags of launch/cli.py.
      workdir: of the study, or its address.
    """
    self._place, self._options, self._home = place, options, workdir
    self._stage = buckets.Stage(pathlib.Path(workdir))
    if buckets.is_address(workdir):
      self._stage = buckets.Stage(buckets.copy_of(workdir), workdir)

  def check(self, config: ConfigDict) -> None:
    """Raises the errors that submitting would raise; submits nothing.

    Args:
      config: of the study; learning rates are its proxies'.
    """
    for runs in self._runs(config):
      _, submission, _ = self._prepare(runs)
      places.check_program(submission)

  def describe(self, config: ConfigDict) -> str:
    """Returns the submission, without the values yet to be searched."""
    return '\n'.join(self._prepare(runs)[-1] for runs in self._runs(config))

  def _runs(self, config: ConfigDict) -> list[list[Run]]:
    home = self._stage.directory
    return [target_runs(config, home, cell, {}) for cell in cells.cells(config)]

  def send(self, runs: Sequence[Run]) -> None:
    """Submits the targets of a cell that were not submitted before.

    Raises:
      ValueError: one does not fit, or the place has no such machines.
      OSError: a program is missing or failed.
    """
    new = []
    for run in runs:
      path = run.directory / _SENT
      if not path.exists():
        new.append(run)
        continue
      sent = json.loads(path.read_text('utf-8'))
      print(
        f'{run.label}: sent to {sent["to"]} at {sent["at"]}, not finished; '
        f'delete {path} to send it again'
      )
    if not new:
      return
    job, submission, _ = self._prepare(new)
    places.hand_over(self._place, job, submission)
    for run in new:
      run.directory.mkdir(parents=True, exist_ok=True)
      now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
      metrics.write_json(run.directory / _SENT, {'to': self._place, 'at': now})

  def _prepare(
    self, runs: Sequence[Run]
  ) -> tuple[jobs.Job, jobs.Submission, str]:
    """Returns the job of a cell's targets, one unit for each seed."""
    units = [
      jobs.Unit(
        self._stage.address(run.directory),
        overrides(run.config),
        run.directory.name,
      )
      for run in runs
    ]
    job = places.describe(
      self._place,
      self._options,
      units,
      jobs.name_of(str(runs[0].stage.cell)),
      self._home,
    )
    configs = [run.config for run in runs]
    return places.prepare(self._place, job, configs, self._options.check)
