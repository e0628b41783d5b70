"""What the training loop is given besides the program."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from typing import Any, Protocol

import numpy as np

from steepest.training import metrics


class Data(Protocol):
  """What the loop reads; data/pipeline.py has it."""

  fingerprint: str

  @property
  def bytes_per_token(self) -> Mapping[str, float]: ...

  def train(self, first_step: int) -> Iterator[dict[str, np.ndarray]]: ...

  def validation(self) -> dict[str, list[dict[str, np.ndarray]]]: ...


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Keys of experiments/base.py that the loop itself reads."""

  seed: int
  steps: int
  log_every: int
  eval_every: int
  eval_sequences: int
  eval_tasks: str
  eval_tasks_every: int
  checkpoint_every: int
  checkpoints_kept: int
  stall_seconds: float


@dataclasses.dataclass(frozen=True)
class Callbacks:
  """What others add to the loop.

  Attributes:
    evaluate: (params, steps done, whether the run ends) → benchmark scores.
    on_row: called with each row.
    stop: (steps done) → whether to save and leave; asked once a step.
    writers: (what to tell of a failure) → further writers of metrics.
  """

  evaluate: Callable[[Any, int, bool], dict[str, float]] | None = None
  on_row: Callable[[dict[str, Any]], None] | None = None
  stop: Callable[[int], bool] = lambda steps: False
  writers: Callable[[Callable[[str], None]], list[metrics.Writer]] = (
    lambda warn: []
  )
