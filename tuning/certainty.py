"""How sure a study's answer would be, from the spread of runs that there are.

The report compares two optimizers by the differences of their losses at equal
seeds (eval/comparing/statistics.py). Over n seeds the half-width of Student's
interval of their mean is t · s / √n, where s is the standard deviation of such
differences. Rates that are tried a factor r apart miss the best one by up to
log r / 2: if it lies anywhere between with equal chance, and the loss is
a · (log lr - log best)² above the lowest, that costs a · log² r / 12 on
average.
"""

from collections.abc import Iterable
import dataclasses
import itertools
import math
import os

import numpy as np
from scipy import stats

from steepest.eval.comparing import (
  comparison,
  runs as runs_lib,
  statistics,
  tuning,
)


@dataclasses.dataclass(frozen=True)
class Spread:
  """What is known of chance and of learning rates.

  Attributes:
    sd: s, of the differences of two optimizers' losses at equal seeds, nats.
    curvature: a, nats; None where it is not known.
    source: where they are from, in words.
  """

  sd: float
  curvature: float | None
  source: str


# From docs/results/transfer/transfer.json, µP, width 128: root mean square of
# s over both models and every two optimizers, each seed at its best rate, three
# seeds; median of a over models, optimizers and seeds.
DEFAULT = Spread(
  0.055,
  0.23,
  'docs/results/transfer, width 128, 150 k tokens; larger and longer runs '
  'spread less, so give --runs',
)


def measured(paths: Iterable[str | os.PathLike[str]]) -> Spread:
  """Returns what the runs of a study, or of several, tell.

  Raises:
    FileNotFoundError: a path holds no run.
    ValueError: no two optimizers have final runs of two seeds.
  """
  names = [str(path) for path in paths]
  result = comparison.compare(runs_lib.load_runs(names))
  spreads = []
  for group in result.groups:
    losses = [
      cell.per_seed['eval_loss']
      for cell in group.cells
      if 'eval_loss' in cell.per_seed
    ]
    for first, second in itertools.combinations(losses, 2):
      sd = statistics.spread(np.subtract(first, second).tolist()).sd
      if sd is not None:
        spreads.append(sd)
  shown = ','.join(names)
  if not spreads:
    raise ValueError(
      f'--runs={shown}: no two optimizers have final runs of two seeds'
    )
  bent = [
    a for curve in result.curves if (a := curvature(curve.points)) is not None
  ]
  return Spread(
    math.sqrt(float(np.mean(np.square(spreads)))),
    float(np.median(bent)) if bent else None,
    f'{len(spreads)} pairs of optimizers and {len(bent)} searches of {shown}',
  )


def curvature(points: Iterable[tuning.Point]) -> float | None:
  """Returns a of the parabola through the best rate and its neighbours.

  None where the best has no finished trial on either side.
  """
  known = [(p.lr, p.loss) for p in points if p.loss is not None]
  best = min(range(len(known)), key=lambda i: known[i][1], default=0)
  if not 0 < best < len(known) - 1:
    return None
  x, y = zip(*((math.log(lr), loss) for lr, loss in known[best - 1 : best + 2]))
  slopes = np.diff(y) / np.diff(x)
  return float((slopes[1] - slopes[0]) / (x[2] - x[0]))


def half_width(spread: Spread, seeds: int, optimizers: int) -> float | None:
  """Returns the half-width of a difference's interval, nats; None for one seed.

  With two seeds the report pools the spread over all optimizers.

  Args:
    spread: of the differences.
    seeds: n.
    optimizers: that are compared with each other.
  """
  if seeds < 2:
    return None
  freedom = optimizers if seeds == 2 else seeds - 1
  quantile = stats.t.ppf((1 + statistics.CONFIDENCE) / 2, freedom)
  return float(quantile) * spread.sd / math.sqrt(seeds)


def missed(spread: Spread, ratio: float) -> float | None:
  """Returns what rates a factor `ratio` apart cost on average, nats."""
  if spread.curvature is None:
    return None
  return spread.curvature * math.log(ratio) ** 2 / 12
