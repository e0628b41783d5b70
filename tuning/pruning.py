"""Median stopping: trials that lag behind those that have finished end early.

All trials of a cell read the same batches, so their training losses can be
compared step by step. A trial ends once its loss, averaged over a twentieth of
the steps, is above the median of the finished trials' at the same step.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import statistics
from typing import Any

from ml_collections import ConfigDict

# Averages over this share of a trial's steps are compared.
_SHARE = 1 / 20


class Pruned(ValueError):
  """A trial that lags behind was ended after `steps` steps."""

  def __init__(self, message: str, steps: int):
    super().__init__(message)
    self.steps = steps


@dataclasses.dataclass(frozen=True)
class Rule:
  """When trials are compared.

  Attributes:
    window: steps that a loss is averaged over; compared at its multiples.
    first: steps that a trial does in any case.
    least: finished trials before any is ended.
  """

  window: int
  first: int
  least: int


def rule(config: ConfigDict) -> Rule | None:
  """Returns the rule of a study; None where no trial is ended early."""
  if config.study.pruning == 'none':
    return None
  return Rule(
    window=max(1, round(config.steps * _SHARE)),
    first=round(config.study.pruning_fraction * config.steps),
    least=config.study.pruning_trials,
  )


def smoothed(
  rows: Sequence[Mapping[str, Any]], window: int
) -> dict[int, float]:
  """Returns steps done → mean training loss over the last `window` steps.

  Args:
    rows: of metrics.jsonl; windows without a row are left out.
    window: in steps.
  """
  parts: dict[int, list[float]] = {}
  for row in rows:
    if 'train/loss' not in row:  # Its update was skipped.
      continue
    done = (row['step'] // window + 1) * window
    parts.setdefault(done, []).append(row['train/loss'])
  last = rows[-1]['step'] + 1 if rows else 0
  return {
    done: statistics.fmean(losses)
    for done, losses in parts.items()
    if done <= last
  }


def limits(
  finished: Sequence[Mapping[int, float]], rule: Rule
) -> dict[int, float]:
  """Returns steps done → the loss above which a trial ends there.

  Args:
    finished: of each finished trial, what `smoothed` returns.
    rule: of the study.
  """
  if len(finished) < rule.least:
    return {}
  shared = set.intersection(*(set(losses) for losses in finished))
  return {
    done: statistics.median(losses[done] for losses in finished)
    for done in sorted(shared)
    if done >= rule.first
  }


class Watch:
  """Raises `Pruned` at the first row at which a trial lags behind."""

  def __init__(self, limits: Mapping[int, float], window: int, log_every: int):
    """Takes what `limits` returns and which rows metrics.jsonl keeps."""
    self._limits = limits
    self._window = window
    self._log_every = log_every
    self._losses: list[float] = []

  def __call__(self, row: Mapping[str, Any]) -> None:
    step = row['step']
    # The finished trials are known by their kept rows alone.
    if step % self._log_every == 0 and 'train/loss' in row:
      self._losses.append(row['train/loss'])
    done = step + 1
    if done % self._window:
      return
    losses, self._losses = self._losses, []
    if losses and done in self._limits:
      loss, limit = statistics.fmean(losses), self._limits[done]
      if loss > limit:
        raise Pruned(
          f'ended after {done} steps: its training loss {loss:.4f} is above '
          f'the median {limit:.4f} of the finished trials',
          done,
        )
