"""Watches loss and gradient norm for spikes, and says what to do about them.

What is done at a step depends on the numbers of earlier steps only, and these
go into the checkpoint: a resumed run does what the uninterrupted one does.
"""

import collections
import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict
import numpy as np

KINDS = ('stop', 'skip_update', 'rollback')


@dataclasses.dataclass(frozen=True)
class Policy:
  """What counts as a spike and what follows.

  Attributes:
    kind: one of KINDS.
    back: with 'rollback', the updates that are left out: those of the steps
      that end with the spike.
    z_score: standard deviations above the mean of the window that make a
      spike; 0: only numbers that are not finite.
    window: steps that mean and deviation are taken over.
    most: interventions in a row (skipped updates) or in all (rollbacks) after
      which the run ends as diverged.
  """

  kind: str
  back: int
  z_score: float
  window: int
  most: int

  @property
  def guards(self) -> bool:
    """Whether the compiled step has to be able to leave an update out."""
    return self.kind != 'stop'


def parse(config: ConfigDict) -> Policy:
  """Reads the `spikes` slice of experiments/base.py.

  Raises:
    ValueError: names the key that is out of its range.
  """
  kind, colon, back = str(config.policy).partition(':')
  whole = (
    back.isdecimal() and int(back) > 0 if kind == 'rollback' else not colon
  )
  if kind not in KINDS or not whole:
    raise ValueError(
      f'spikes.policy={config.policy!r}: give stop, skip_update or rollback:K '
      'with K at least 1'
    )
  if config.z_score < 0:
    raise ValueError(f'spikes.z_score={config.z_score}: must not be negative')
  for key in ('window', 'most'):
    if config[key] < 1:
      raise ValueError(f'spikes.{key}={config[key]}: must be at least 1')
  return Policy(
    kind, int(back or 0), config.z_score, config.window, config.most
  )


class Spike(Exception):
  """A step that a run should not go on from.

  Attributes:
    step: where it is.
    text: what is wrong, in a few words.
  """

  def __init__(self, step: int, text: str):
    super().__init__(f'step {step}: {text}')
    self.step = step
    self.text = text


class Diverged(ValueError):
  """The loss or the update stopped being a number, at `step`."""

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


class Watchdog:
  """Judges the steps of one run by a policy."""

  def __init__(self, policy: Policy):
    self.policy = policy
    # One more than the window: the latest step is not yet known to the next.
    self._seen: collections.deque[tuple[int, float, float]] = collections.deque(
      maxlen=policy.window + 1
    )
    self._left_out: set[int] = set()
    self._in_a_row = 0
    self.skipped = 0
    self.rollbacks = 0

  def limits(self, step: int) -> np.ndarray:
    """Returns the highest loss and gradient norm after which to update.

    Both are -inf where the update is to be left out whatever they are, and inf
    where nothing is known yet. They come from the steps up to step - 2: while
    a step is started, the numbers of the one before it are still on their way.

    Returns:
      float32[2].
    """
    if step in self._left_out:
      return np.full(2, -np.inf, np.float32)
    known = [row[1:] for row in self._seen if row[0] <= step - 2]
    known = known[-self.policy.window :]
    if not self.policy.z_score or len(known) < self.policy.window:
      # The largest finite number: what is not finite never passes.
      return np.full(2, np.finfo(np.float32).max, np.float32)
    values = np.asarray(known, np.float64)
    limit = values.mean(0) + self.policy.z_score * values.std(0)
    return limit.astype(np.float32)

  def see(self, step: int, row: dict[str, float]) -> bool:
    """Takes in a step's numbers and returns whether its update was skipped.

    Args:
      step: the next one, in order.
      row: `train/loss`, `grad_norm` and all else that has to be finite; with a
        policy that guards, `skipped` (1 or 0) as the compiled step says.

    Raises:
      Spike: the run should not go on from here.
    """
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    skipped = self.policy.guards and row['skipped'] > 0
    if skipped and (
      self.policy.kind == 'skip_update' or step in self._left_out
    ):
      self._count_skipped(step, bad)
      return True
    if bad:
      raise Spike(step, f'{bad[0]} is {row[bad[0]]}')
    for name, limit in zip(('train/loss', 'grad_norm'), self.limits(step)):
      if row[name] > limit:
        raise Spike(
          step,
          f'{name} is {row[name]:.4g}, above {limit:.4g}, '
          f'{self.policy.z_score:g} deviations over the mean of '
          f'{self.policy.window} steps',
        )
    self._seen.append((step, row['train/loss'], row['grad_norm']))
    self._in_a_row = 0
    return False

  def _count_skipped(self, step: int, bad: list[str]) -> None:
    self.skipped += 1
    if step in self._left_out:
      return
    self._in_a_row += 1
    if self._in_a_row >= self.policy.most:
      what = f' ({bad[0]} is not finite)' if bad else ''
      raise Spike(step, f'{self._in_a_row} updates in a row left out{what}')

  def leave_out(self, spike: Spike) -> int:
    """Returns the step to go back to at least; its and later updates fall out.

    Raises:
      Spike: there were too many.
    """
    self.rollbacks += 1
    if self.rollbacks > self.policy.most:
      raise Spike(
        spike.step, f'{spike.text}, after {self.policy.most} rollbacks'
      )
    first = max(0, spike.step - self.policy.back + 1)
    self._left_out.update(range(first, spike.step + 1))
    return first

  def start_over(self) -> None:
    """Forgets the steps seen, for a run that starts again from none."""
    self._seen.clear()
    self._in_a_row = self.skipped = 0

  def books(self) -> dict[str, Any]:
    """Returns what a checkpoint has to hold, as JSON values."""
    return {
      'seen': [list(row) for row in self._seen],
      'left_out': sorted(self._left_out),
      'in_a_row': self._in_a_row,
      'skipped': self.skipped,
      'rollbacks': self.rollbacks,
    }

  def resume(self, books: dict[str, Any]) -> None:
    """Goes on from a checkpoint, of this run's past too.

    What a rollback has left out since that checkpoint stays left out.
    """
    self._seen.clear()
    self._seen.extend(
      (int(step), loss, norm) for step, loss, norm in books['seen']
    )
    self._left_out |= set(books['left_out'])
    self._in_a_row = books['in_a_row']
    self.skipped = books['skipped']
    self.rollbacks = max(self.rollbacks, books['rollbacks'])
