"""How each optimizer was tuned: hyperparameters, their grid, what it cost."""

from collections.abc import Sequence
import dataclasses
import math

from steepest.eval.comparing import costs
from steepest.eval.comparing.costs import Cost
from steepest.eval.comparing.runs import Run

# Where hyperparameters stand in a config.
_GROUPS = ('optimizer.', 'schedule.', 'parametrization.')


@dataclasses.dataclass(frozen=True)
class Tried:
  """One hyperparameter of a search.

  Attributes:
    name: 'lr', 'weight_decay', 'b1', 'b2', 'warmup_steps', 'rho' ….
    values: those tried, rising.
    chosen: of the final runs, of the best trial while there are none.
    below, above: how many tried values are lower and higher than `chosen`: its
      distance from the edges in steps; 0 is at the edge.
  """

  name: str
  values: tuple[float, ...]
  chosen: float | None
  below: int | None
  above: int | None


@dataclasses.dataclass(frozen=True)
class Budget:
  """The tuning of one optimizer.

  Attributes:
    optimizer: optimizer.name.
    search: 'grid', 'random' or 'tpe'; None where not recorded.
    trials: that ended.
    planned: of these, those of the search as planned; the rest were added
      because the best rate lay at an edge, a rule that is the same for all.
    pruned, diverged: of `trials`.
    tokens_per_trial: planned.
    cost: of all trials that ended.
    tried: what was searched, lr first.
  """

  optimizer: str
  search: str | None
  trials: int
  planned: int
  pruned: int
  diverged: int
  tokens_per_trial: int
  cost: Cost | None
  tried: tuple[Tried, ...]

  @property
  def extended(self) -> int:
    """Trials that were added at an edge."""
    return self.trials - self.planned


def hyperparameters(run: Run) -> dict[str, float]:
  """Returns the numbers that a search can vary: lr, b1, warmup_steps …."""
  found: dict[str, float] = {}
  for key, value in run.config.items():
    name = key.rpartition('.')[2]
    if not key.startswith(_GROUPS):
      continue
    if name == 'betas':
      found |= {f'b{i}': float(b) for i, b in enumerate(value, 1)}
    elif isinstance(value, int | float) and not isinstance(value, bool):
      found[name] = float(value)
  return found


def searched(trials: Sequence[Run]) -> list[str]:
  """Returns the hyperparameters that differ between trials, lr first."""
  held = [hyperparameters(run) for run in trials]
  names = [
    name
    for name in held[0]
    if name != 'lr' and len({of[name] for of in held if name in of}) > 1
  ]
  return ['lr', *names]


def build(
  optimizer: str, trials: Sequence[Run], finals: Sequence[Run]
) -> Budget | None:
  """Returns the budget of a search; None where no trial has ended.

  Args:
    optimizer: optimizer.name.
    trials: of the cell, on one proxy.
    finals: runs that got what the search found.
  """
  ended = [run for run in trials if run.status != 'unfinished']
  if not ended:
    return None
  study = ended[0].study
  held = [hyperparameters(run) for run in ended]
  best = hyperparameters(finals[0]) if finals else _best(ended)
  tried = []
  for name in searched(ended):
    values = tuple(sorted({of[name] for of in held if name in of}))
    chosen = best[name] if name in best else None
    sides = (None, None) if chosen is None else distance(values, chosen)
    tried.append(Tried(name, values, chosen, *sides))
  return Budget(
    optimizer=optimizer,
    search=str(study['search']) if 'search' in study else None,
    trials=len(ended),
    planned=_planned(ended, optimizer),
    pruned=sum(run.status == 'pruned' for run in ended),
    diverged=sum(run.status == 'diverged' for run in ended),
    tokens_per_trial=max(run.planned_tokens for run in ended),
    cost=costs.spent(ended),
    tried=tuple(tried),
  )


def _best(trials: Sequence[Run]) -> dict[str, float]:
  losses = [(final_loss(run), i) for i, run in enumerate(trials)]
  loss, i = min(losses)
  return hyperparameters(trials[i]) if math.isfinite(loss) else {}


def final_loss(run: Run) -> float:
  """Returns the validation loss of a run, else the training loss.

  Infinite where the run diverged or was pruned.
  """
  if run.status != 'finished' or run.summary is None:
    return math.inf
  loss = run.summary['eval_loss']
  return float(run.summary['train_loss'] if loss is None else loss)


def _planned(trials: Sequence[Run], optimizer: str) -> int:
  """Returns how many of the trials the study set out with."""
  study = trials[0].study
  if 'search' in study and study['search'] in ('random', 'tpe'):
    return min(len(trials), int(study['trials']))
  key = f'lrs_{optimizer}'
  if key not in study:
    return len(trials)
  grid = [float(lr) for lr in study[key]]
  return sum(
    any(math.isclose(run.lr, lr, rel_tol=1e-6) for lr in grid) for run in trials
  )


def refusal(budgets: Sequence[Budget], optimizers: Sequence[str]) -> str:
  """Says why the optimizers of a group cannot be ranked; '' if they can.

  Equal are the planned trials and the tokens of a trial. Optimizers without any
  trial are equal to one another.

  Args:
    budgets: of the group's searches.
    optimizers: that have compared runs.
  """
  of = {name: (0, 0) for name in optimizers}
  of |= {
    b.optimizer: (b.planned, b.tokens_per_trial)
    for b in budgets
    if b.optimizer in of
  }
  if len(set(of.values())) < 2:
    return ''
  listed = ', '.join(
    f'{name} had {trials} trials of {tokens:,} tokens'
    if trials
    else f'{name} had no trials'
    for name, (trials, tokens) in of.items()
  )
  return f'the tuning budgets differ: {listed}'


def distance(values: Sequence[float], chosen: float) -> tuple[int, int]:
  """Returns how many of `values` are lower and how many higher."""
  close = [math.isclose(v, chosen, rel_tol=1e-5) for v in values]
  below = sum(v < chosen for v, same in zip(values, close) if not same)
  above = sum(v > chosen for v, same in zip(values, close) if not same)
  return below, above
