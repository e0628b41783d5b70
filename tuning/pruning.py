"""Ends lagging trials early, by Optuna's median pruner."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

# Finished trials before any is ended early; the initial share of a trial's
# steps that is exempt; the share over which its training loss is averaged.
_FINISHED, _FREE, _WINDOW = 4, 0.3, 1 / 20


def curve(
  rows: Sequence[Mapping[str, Any]], steps: int
) -> list[tuple[int, float]]:
  """Returns (steps done, mean training loss since the previous point).

  Args:
    rows: of metrics.jsonl; windows without a row are left out.
    steps: of the run; a window is a twentieth of them.
  """
  window = max(1, round(steps * _WINDOW))
  losses: dict[int, list[float]] = {}
  for row in rows:
    if 'train/loss' in row:
      losses.setdefault(row['step'] // window, []).append(row['train/loss'])
  return [
    ((i + 1) * window, math.fsum(held) / len(held))
    for i, held in sorted(losses.items())
    if (i + 1) * window <= steps
  ]


class MedianPruner:
  """Tells when Optuna's median pruner ends a trial.

  All trials of a cell read the same batches, so their training losses are
  comparable step by step. A trial ends once the lowest point of its curve so
  far is above the median of the finished trials' curves at the same step.
  """

  def __init__(
    self,
    finished: Sequence[Sequence[tuple[int, float]]],
    steps: int,
    log_every: int,
  ):
    """Takes the curves of finished trials, and the trial's own steps."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    self._steps = steps
    self._log_every = log_every
    self._rows: list[Mapping[str, Any]] = []
    self._window = max(1, round(steps * _WINDOW))
    study = optuna.create_study(
      pruner=optuna.pruners.MedianPruner(_FINISHED, round(_FREE * steps))
    )
    for points in finished:
      values = {int(step): loss for step, loss in points}
      study.add_trial(
        optuna.trial.create_trial(value=0.0, intermediate_values=values)
      )
    self._trial = study.ask()

  def ends(self, row: Mapping[str, Any]) -> str:
    """Returns why a trial ends at a row; '' if it does not."""
    # Finished trials are known only by the rows that they logged.
    if row['step'] % self._log_every == 0:
      self._rows.append(row)
    done = row['step'] + 1
    if done % self._window:
      return ''
    found = curve(self._rows, self._steps)
    self._rows = []
    if not found or found[-1][0] != done:
      return ''
    self._trial.report(found[-1][1], done)
    if not self._trial.should_prune():
      return ''
    return (
      f'ended after {done} steps: its training loss lies above the median of '
      'the finished trials'
    )
