"""Statements about learning rates, tested: of two models, of wider models."""

import math

import numpy as np
import pandas as pd
from scipy import stats

from steepest.report import findings, statistics, tables, widths, words
from steepest.report.findings import UNRESOLVED, Finding

# About twice: half a factor of two less or more.
ABOUT_TWICE = (2**0.5, 2**1.5)
# A rate holds where the best one moves by less than a factor of two.
SAME_RATE = (-1.0, 1.0)


def twice_the_rate(comparison: tables.Comparison) -> list[Finding]:
  """Tests 'LLaMA’s best rate is about twice GPT-2’s', for each optimizer.

  On the vertices of parabolas through the trials. Their error is that of
  losses that vary as those of the final runs do over seeds: trials have one
  seed, so this rather overstates it.
  """
  found = []
  runs = comparison.tables.runs
  for optimizer in findings.AMONG:
    place = f'LLaMA over GPT-2, {words.name(optimizer)}'
    of = runs[(runs['optimizer'] == optimizer)]
    names = _varied(of)
    both = [_vertex(of[of['architecture'] == a]) for a in ('llama', 'gpt2')]
    if None in both or len(names) > 1:
      why = 'a search has no parabola around its best rate'
      if len(names) > 1:
        why = f'the search varied {findings.spelled(names)} at once'
      found.append(findings.untested(place, why))
      continue
    (a, error_a), (b, error_b) = (v for v in both if v is not None)
    size = findings.size_of(of[of['stage'] == 'final'])
    tuned = f'{findings.spelled(names)} tuned'
    effect = f'ratio of the best rates: {2 ** (a - b):.2f}'
    reach = stats.norm.isf(statistics.LEVEL / 2) * math.hypot(error_a, error_b)
    if math.isnan(reach):
      remark = 'one seed: the noise of a loss is unknown'
      found.append(
        Finding(place, UNRESOLVED, effect, '', math.nan, 1, remark, size, tuned)
      )
      continue
    low, high = 2 ** (a - b - reach), 2 ** (a - b + reach)
    found.append(
      Finding(
        place,
        findings.within(low, high, ABOUT_TWICE),
        effect,
        f'{low:.2f} to {high:.2f}',
        n=1,
        remark='one seed of trials, with the noise of the final runs',
        size=size,
        tuned=tuned,
      )
    )
  return found


def _varied(runs: pd.DataFrame) -> list[str]:
  """Returns the hyperparameters that trials of one kind differ in, lr first."""
  kinds = ['architecture', 'optimizer', 'config.model.width', 'cell']
  trials = runs[runs['stage'] == 'tune']
  found = {'lr': None}
  for _, of in trials.groupby([k for k in kinds if k in trials]):
    held = pd.DataFrame(map(tables.hyperparameters, of.to_dict('records')))
    found |= {name: None for name in held if held[name].nunique() > 1}
  return list(found)


def _vertex(runs: pd.DataFrame) -> tuple[float, float] | None:
  """Returns log2 of the best rate and its standard error; None without one.

  Args:
    runs: of one model and optimizer: trials, and final runs for their noise.
  """
  trials = runs[(runs['stage'] == 'tune') & np.isfinite(runs['loss'])]
  if len(trials) and trials['cell'].nunique() > 1:
    own = trials['cell'].mode()[0]
    trials = trials[trials['cell'] == own]
  losses = trials.groupby('lr')['loss'].min()
  place = int(np.argmin(losses)) if len(losses) else 0
  if not 0 < place < len(losses) - 1:
    return None
  near = losses.iloc[max(place - 2, 0) : place + 3]
  x_P = np.log2(near.index.to_numpy(np.float64))
  center = float(x_P.mean())
  design_Px3 = np.vander(x_P - center, 3)
  inverse_3xP = np.linalg.pinv(design_Px3)
  a, b, _ = inverse_3xP @ near.to_numpy()
  if a <= 0:
    return None
  finals = runs[(runs['stage'] == 'final') & (runs['status'] == 'finished')]
  variances = finals.groupby('group')['loss'].var()
  gradient_3 = np.array([b / (2 * a**2), -1 / (2 * a), 0.0])
  noise = math.sqrt(variances.mean()) if variances.notna().any() else math.nan
  error = noise * float(np.linalg.norm(gradient_3 @ inverse_3xP))
  return center - b / (2 * a), error


def rates_transfer(comparison: tables.Comparison) -> list[Finding]:
  """Tests 'the best rate stays where it is as models get wider' under µP.

  From the narrowest to the widest model of a study over widths; standard
  errors are pooled over its cells.
  """
  runs = comparison.tables.runs
  if 'config.parametrization.kind' not in runs:
    return [findings.untested('every model', 'no study over widths')]
  runs = runs[runs['stage'] == 'tune']
  runs = runs[runs['config.parametrization.kind'] == 'mup']
  shifts, places = {}, {}
  for key, of in runs.groupby(['architecture', 'optimizer']):
    sizes = sorted(of['config.model.width'].unique())
    if len(sizes) < 2:
      continue
    ends = [of[of['config.model.width'] == w] for w in (sizes[0], sizes[-1])]
    narrow, wide = ({s: _best(r) for s, r in e.groupby('seed')} for e in ends)
    moved_S = np.array([wide[s] - narrow[s] for s in narrow if s in wide])
    moved_S = moved_S[~np.isnan(moved_S)]
    if moved_S.size:
      shifts[key] = moved_S
      places[key] = f'from width {sizes[0]:.0f} to {sizes[-1]:.0f}'
  freedom = sum(len(s) - 1 for s in shifts.values())
  squares = sum(float(((s - s.mean()) ** 2).sum()) for s in shifts.values())
  found = []
  for key, moved_S in shifts.items():
    shift, n = float(moved_S.mean()), moved_S.size
    signed = f'{shift:+.2f}'.replace('-', '−')
    conclusion, interval = UNRESOLVED, ''
    if freedom:
      error = math.sqrt(squares / freedom / n)
      reach = float(statistics.quantile(statistics.LEVEL, freedom)) * error
      conclusion = findings.within(shift - reach, shift + reach, SAME_RATE)
      interval = words.interval(shift - reach, shift + reach, '+.2f')
    found.append(
      Finding(
        f'{words.name(key[0])} {words.name(key[1])}',
        conclusion,
        f'shift of the best rate {places[key]}: {signed} factors of two',
        interval,
        n=n,
        remark='' if freedom else 'one seed: the noise is unknown',
        size=findings.size_of(runs),
        tuned=f'{findings.spelled(_varied(runs))} tuned',
      )
    )
  return found or [findings.untested('every model', 'no study over widths')]


def _best(trials: pd.DataFrame) -> float:
  """Returns log2 of the best rate of one seed."""
  return widths.optimum(trials.groupby('lr')['loss'].min())
