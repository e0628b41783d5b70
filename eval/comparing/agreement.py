"""Whether a lower loss comes with a better benchmark score."""

from collections.abc import Sequence
import dataclasses

from scipy import stats

from steepest.eval.comparing.cells import Cell, Column


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Rank correlation of final loss and benchmark score.

  Attributes:
    key: 'task/metric', or 'accuracy' for the mean over the benchmarks.
    tau: Kendall's tau-b of (-loss, score) over the cells' means: 1 where a
      lower loss always comes with a better score; None for fewer than two
      cells, or where all have the same.
    p: two-sided, exact where no two values are equal, else by the normal
      distribution (scipy.stats.kendalltau); None with `tau`.
    n: cells.
    smallest_p: that as many cells can give; above 0.05 nothing can be told.
    concordant, discordant: pairs of cells that agree and that do not.
  """

  key: str
  tau: float | None
  p: float | None
  n: int
  smallest_p: float | None
  concordant: int
  discordant: int


def kendall(
  key: str, losses: Sequence[float], scores: Sequence[float], better: bool
) -> Agreement:
  """Correlates the ranks of losses and scores.

  Args:
    key: of the score.
    losses: one for each cell.
    scores: likewise.
    better: whether a higher score is better.
  """
  n = len(losses)
  good = [score if better else -score for score in scores]
  signs = [
    (losses[j] - losses[i]) * (good[i] - good[j])
    for i in range(n)
    for j in range(i)
  ]
  tau = p = smallest = None
  if n > 1 and len(set(losses)) > 1 and len(set(good)) > 1:
    found = stats.kendalltau([-loss for loss in losses], good)
    tau, p = float(found.statistic), float(found.pvalue)
    smallest = float(stats.kendalltau(range(n), range(n)).pvalue)
  return Agreement(
    key=key,
    tau=tau,
    p=p,
    n=n,
    smallest_p=smallest,
    concordant=sum(sign > 0 for sign in signs),
    discordant=sum(sign < 0 for sign in signs),
  )


def of_cells(
  cells: Sequence[Cell], columns: Sequence[Column]
) -> list[Agreement]:
  """Returns the agreement for each benchmark and for the mean over them.

  Args:
    cells: of a group.
    columns: of benchmarks that all cells were asked alike.
  """
  have = [cell for cell in cells if 'eval_loss' in cell.spreads]
  found = []
  for column in columns:
    both = [cell for cell in have if column.key in cell.scores]
    losses = [cell.spreads['eval_loss'].mean for cell in both]
    scores = [cell.scores[column.key].mean for cell in both]
    if len(both) > 1:
      better = not column.lower_is_better
      found.append(kendall(column.key, losses, scores, better))
  means = [
    (cell.spreads['eval_loss'].mean, cell.accuracy.mean)
    for cell in have
    if cell.accuracy is not None
  ]
  if len(means) > 1:
    losses, scores = ([mean[i] for mean in means] for i in (0, 1))
    found.append(kendall('accuracy', losses, scores, True))
  return found
