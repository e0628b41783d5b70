"""Where the best learning rate lies at each width, and what moving costs.

A cell is a model × an optimizer × a parametrization, one curve of loss over
rate for each width and seed. A grid step is a factor of two in rate.
"""

from collections.abc import Sequence
import dataclasses
import json
import math
import os
import pathlib
from typing import Any

from rich.console import Console
from rich.table import Table

from steepest.eval.comparing import statistics

Losses = dict[float, float]


@dataclasses.dataclass(frozen=True)
class Trial:
  """A run of the experiment; a loss is infinite where it diverged."""

  cell: tuple[str, str, str]
  width: int
  base_width: int
  seed: int
  lr: float
  loss: float
  unclipped: float | None
  seconds: float
  env: dict[str, Any]


def load(workdir: pathlib.Path) -> list[Trial]:
  """Returns the runs of launch.transfer that ended.

  Raises:
    FileNotFoundError: there are none.
  """
  trials = [
    _trial(path.parent)
    for path in sorted(workdir.glob('runs/*/*/*/*/summary.json'))
  ]
  if not trials:
    raise FileNotFoundError(
      f'{workdir}: no finished run; start with python -m launch.transfer'
    )
  return trials


def read(workdir: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns what launch.transfer wrote into transfer.json.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged.
  """
  path = pathlib.Path(workdir) / 'transfer.json'
  if not path.exists():
    raise FileNotFoundError(
      f'{path}: no such file; --transfer takes the workdir of launch.transfer'
    )
  try:
    result = json.loads(path.read_text('utf-8'))
    for cell in result['cells']:
      cell['drift_steps_per_octave'], cell['wider_is_better']
      for width in cell['widths']:
        width['curves'], width['log2_optimum'], width['penalty_of_proxy_lr']
    result['hours_of_one_process'], result['runs']
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{path}: damaged ({error!r}); write it again with launch.transfer '
      '--report_only'
    ) from None
  return dict(result)


def _trial(directory: pathlib.Path) -> Trial:
  read = lambda name: json.loads((directory / name).read_text('utf-8'))
  config, summary = read('config.json'), read('summary.json')
  # Without validation data the training loss is compared.
  loss = summary['eval_loss']
  loss = summary['train_loss'] if loss is None else loss
  rows = (directory / 'metrics.jsonl').read_text('utf-8').splitlines()
  last = json.loads(rows[-1]) if rows else {}
  share = 'unclipped_fraction/hidden'
  return Trial(
    cell=(
      config['model']['name'],
      config['optimizer']['name'],
      config['parametrization']['kind'],
    ),
    width=config['model']['width'],
    base_width=config['parametrization']['base_width'],
    seed=config['seed'],
    lr=config['optimizer']['lr'],
    loss=math.inf if loss is None else loss,
    unclipped=last[share] if share in last else None,
    seconds=sum(
      summary[f'{part}seconds']
      for part in ('', 'data_wait_', 'compile_', 'eval_')
    ),
    env=read('env.json'),
  )


def optimum(losses: Losses) -> float | None:
  """Returns log2 of the best rate of a curve.

  The minimum of the parabola, in the logarithm of the rate, through the
  lowest loss and its neighbours; the lowest point itself where it lies at an
  end of what was tried or beside a run that diverged.

  Args:
    losses: rate → loss.

  Returns:
    None where every run diverged.
  """
  lrs = sorted(losses)
  best = min(lrs, key=losses.__getitem__)
  if math.isinf(losses[best]):
    return None
  i = lrs.index(best)
  around = [(math.log2(lr), losses[lr]) for lr in lrs[max(0, i - 1) : i + 2]]
  if len(around) == 3 and all(math.isfinite(loss) for _, loss in around):
    vertex = statistics.parabola_minimum(around)
    if vertex is not None:
      return vertex[0]
  return math.log2(best)


def analyse(trials: Sequence[Trial]) -> dict[str, Any]:
  """Returns what transfer.json holds.

  Per cell: per width the curves, the best rates and what the narrowest
  width's best rate costs there; the drift of the best rate over the widths;
  how often a wider model is better at the same rate.
  """
  cells = sorted({t.cell for t in trials})
  first = trials[0].env
  return {
    'runs': len(trials),
    'diverged': sum(math.isinf(t.loss) for t in trials),
    'hours_of_one_process': sum(t.seconds for t in trials) / 3600,
    'commits': sorted({str(t.env['git_commit']) for t in trials}),
    'device_kind': first['device_kind'],
    'versions': first['versions'],
    'cells': [_cell([t for t in trials if t.cell == cell]) for cell in cells],
  }


def _cell(trials: list[Trial]) -> dict[str, Any]:
  model, optimizer, parametrization = trials[0].cell
  curves: dict[int, dict[int, Losses]] = {}
  for t in trials:
    curves.setdefault(t.width, {}).setdefault(t.seed, {})[t.lr] = t.loss
  widths = sorted(curves)
  seeds = sorted(curves[widths[0]])
  proxy_lr = _best_lr(curves[widths[0]])
  drifts = {
    seed: _drift({w: optimum(curves[w][seed]) for w in widths})
    for seed in seeds
    if all(seed in curves[w] for w in widths)
  }
  found = [d for d in drifts.values() if d is not None]
  return {
    'model': model,
    'optimizer': optimizer,
    'parametrization': parametrization,
    'base_width': trials[0].base_width,
    'proxy_lr': proxy_lr,
    'widths': [
      _width(w, curves[w], proxy_lr, [t for t in trials if t.width == w])
      for w in widths
    ],
    'drift_steps_per_octave': _spread(found),
    'shift_steps': _spread(
      [
        b - a
        for a, b in (
          (optimum(curves[widths[0]][s]), optimum(curves[widths[-1]][s]))
          for s in drifts
        )
        if a is not None and b is not None
      ]
    ),
    'wider_is_better': _wider(curves, proxy_lr),
  }


def _width(
  width: int, curves: dict[int, Losses], proxy_lr: float, trials: list[Trial]
) -> dict[str, Any]:
  optima = [o for o in map(optimum, curves.values()) if o is not None]
  costs = [
    losses[proxy_lr] - min(losses.values())
    for losses in curves.values()
    if proxy_lr in losses and math.isfinite(losses[proxy_lr])
  ]
  shares = [
    t.unclipped for t in trials if t.lr == proxy_lr and t.unclipped is not None
  ]
  return {
    'width': width,
    'best_lrs': [min(c, key=c.__getitem__) for c in curves.values()],
    'best_loss': _spread([min(c.values()) for c in curves.values()]),
    'log2_optimum': _spread(optima),
    'penalty_of_proxy_lr': _spread(costs),
    'unclipped_at_proxy_lr': _spread(shares),
    'curves': [
      {
        'seed': seed,
        'lrs': sorted(losses),
        'losses': [_finite(losses[lr]) for lr in sorted(losses)],
      }
      for seed, losses in sorted(curves.items())
    ],
  }


def _best_lr(curves: dict[int, Losses]) -> float:
  """Returns the rate of lowest mean loss among those that all seeds tried."""
  common = set.intersection(*(set(losses) for losses in curves.values()))
  mean = lambda lr: sum(losses[lr] for losses in curves.values())
  return min(sorted(common), key=mean)


def _drift(optima: dict[int, float | None]) -> float | None:
  """Returns the slope of log2 of the best rate over log2 of the width."""
  points = [(math.log2(w), o) for w, o in optima.items() if o is not None]
  if len(points) < 2:
    return None
  x_mean = sum(x for x, _ in points) / len(points)
  y_mean = sum(y for _, y in points) / len(points)
  above = sum((x - x_mean) * (y - y_mean) for x, y in points)
  return above / sum((x - x_mean) ** 2 for x, _ in points)


def _wider(
  curves: dict[int, dict[int, Losses]], proxy_lr: float
) -> dict[str, Any]:
  """Counts at how many equal rates and seeds twice the width is better."""
  widths = sorted(curves)
  better, pairs = 0, 0
  at_proxy: list[bool] = []
  for narrow, wide in zip(widths, widths[1:]):
    for seed in set(curves[narrow]) & set(curves[wide]):
      a, b = curves[narrow][seed], curves[wide][seed]
      for lr in set(a) & set(b):
        if math.isinf(a[lr]) and math.isinf(b[lr]):
          continue
        better, pairs = better + (b[lr] < a[lr]), pairs + 1
        if lr == proxy_lr:
          at_proxy.append(b[lr] < a[lr])
  return {
    'better': better,
    'pairs': pairs,
    'better_at_proxy_lr': sum(at_proxy),
    'pairs_at_proxy_lr': len(at_proxy),
  }


def _spread(values: Sequence[float]) -> dict[str, Any]:
  """Returns mean, standard error and number; None where not known."""
  if not values:
    return {'mean': None, 'error': None, 'seeds': 0}
  found = statistics.spread(values)
  error = None if found.sd is None else found.sd / math.sqrt(found.n)
  mean = _finite(found.mean)
  return {
    'mean': mean,
    'error': None if error is None else _finite(error),
    'seeds': found.n,
  }


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def print_table(result: dict[str, Any], console: Console) -> None:
  """Prints a line for each cell."""
  table = Table(box=None, pad_edge=False)
  for name in (
    'cell',
    'best rate at each width',
    'drift, steps an octave',
    'penalty at the widest',
    'wider is better',
  ):
    table.add_column(name)
  for cell in result['cells']:
    rates = [w['log2_optimum']['mean'] for w in cell['widths']]
    wider = cell['wider_is_better']
    table.add_row(
      f'{cell["model"]} {cell["optimizer"]} {cell["parametrization"]}',
      ' '.join('-' if r is None else f'{2**r:.2g}' for r in rates),
      _words(cell['drift_steps_per_octave'], '+.2f'),
      _words(cell['widths'][-1]['penalty_of_proxy_lr'], '.3f'),
      f'{wider["better"]}/{wider["pairs"]}',
    )
  console.print(table)
  console.print('± is the standard error over seeds')


def _words(spread: dict[str, Any], form: str) -> str:
  if spread['mean'] is None:
    return '-'
  if spread['error'] is None:
    return f'{spread["mean"]:{form}}'
  return f'{spread["mean"]:{form}} ± {spread["error"]:{form.lstrip("+")}}'
