"""Whether every optimizer of a group was tuned with the same effort.

If not, losses and scores are not ranked, and a table says why.
"""

from collections.abc import Mapping, Sequence
import json
import math
from typing import Any

import pandas as pd

from steepest.report import section, selection, tables, words
from steepest.report.tables import Comparison, Tables

# Hyperparameter → kind. All optimizers that have a kind search it, or none
# does. Hyperparameters without a kind are the optimizer's own.
_KINDS = {
  'lr': 'learning rate',
  'b1': 'memories',
  'b2': 'memories',
  'b3': 'memories',
  'momentum': 'memories',
  'b1_half_life': 'memories',
  'b2_half_life': 'memories',
  'b3_half_life': 'memories',
  'decay_timescale': 'weight decay',
  'warmup': 'warm-up',
  'weight_decay': 'weight decay',
  'warmup_steps': 'warm-up',
  'clip_norm': 'clipping',
  'decay_fraction': 'schedule',
  'final_fraction': 'schedule',
  'attention_multiplier': 'multipliers',
  'logit_multiplier': 'multipliers',
}
_OWN = 'its own'
# Searching an optimizer's own hyperparameters is fair if the others search all
# of these kinds.
_FULL = {'learning rate', 'memories', 'weight decay'}
# A search is narrower if the log of its learning-rate span is below this share
# of the widest search's. Random draws do not fill their range.
_NARROWER = 0.75
# Learning rates that differ by less, relatively, are the same.
_SAME = 1e-5
# With at least _DRAWS values, the edge is the outer _EDGE of their log span at
# either end.
_EDGE, _DRAWS = 0.1, 6
# Trials under study.trials=0: a base, plus so many for each hyperparameter.
TRIALS, TRIALS_OF_EACH = 8, 4


# Most reasons that a sentence lists; the fairness table has them all.
_REASONS = 2
_TUNING = (
  'group optimizer cell trials planned pruned diverged tokens_per_trial tokens '
  'flops seconds searched memories span best_lr chosen_lr below above edges '
  'off due'
).split()


# How each optimizer was tuned.


def tuning(tables_: Tables, compared: pd.DataFrame) -> pd.DataFrame:
  """Returns how each optimizer of each group was searched, one row each.

  Columns: group, optimizer, cell, trials (that ended), planned (of these; the
  others were added because the best lay at an edge), pruned, diverged,
  tokens_per_trial; tokens, flops and seconds of all trials together;
  searched (JSON list of names, lr first), memories (JSON: those set by hand),
  span (highest over lowest planned rate), best_lr, chosen_lr, below and
  above (how many tried rates are lower and higher than the best one), edges
  (JSON list of names whose best value is at an edge of those tried), off (how
  final runs depart from what the search found), due (trials that the rule asks
  for; None: not by rule), full (whether everything with a range in the
  optimizer's file was searched). Without a search: 0 trials.
  """
  runs = tables_.runs
  trials = runs[(runs['stage'] == 'tune') & (runs['status'] != 'unfinished')]
  plans = {s['study']: s for s in tables_.studies.to_dict('records')}
  rows = []
  for (group, optimizer), finals in compared.groupby(
    ['group', 'optimizer'], sort=False
  ):
    cell = finals['cell'].iloc[0]
    found = [of for _, of in selection.searches(trials[trials['cell'] == cell])]
    row = {'group': group, 'optimizer': optimizer, 'cell': cell, 'trials': 0}
    if found:
      study = found[-1]['study'].iloc[0]
      row |= _tuned(found, finals, plans[study] if study in plans else {})
    rows.append(row)
  frame = pd.DataFrame(rows)
  lacking = [column for column in _TUNING if column not in frame]
  return frame.assign(**dict.fromkeys(lacking))


def _tuned(
  searches: Sequence[pd.DataFrame],
  finals: pd.DataFrame,
  plan: Mapping[str, Any],
) -> dict[str, Any]:
  trials = pd.concat(searches)
  # With several proxies, final runs rest on the largest.
  last = searches[-1]
  planned = _planned(last, plan)
  values = [tables.hyperparameters(run) for run in last.to_dict('records')]
  tried = {
    name: sorted({of[name] for of in values if name in of})
    for name in sorted(values[0], key=lambda name: name != 'lr')
  }
  tried = {n: of for n, of in tried.items() if n == 'lr' or len(of) > 1}
  by_hand = {
    name: value
    for name, value in values[0].items()
    if name not in tried and _kind(name) == 'memories'
  }
  row = {
    'trials': len(trials),
    'planned': int(planned.sum()) * len(searches),
    'pruned': int((trials['status'] == 'pruned').sum()),
    'diverged': int((trials['status'] == 'diverged').sum()),
    'tokens_per_trial': int(last['planned_tokens'].max()),
    'searched': json.dumps(list(tried)),
    'memories': json.dumps(by_hand),
    'span': last['lr'][planned].max() / last['lr'][planned].min(),
    'chosen_lr': float(finals['lr'].iloc[0]),
    'due': _due(len(tried), plan, len(searches)),
    'full': 'study.space' in plan
    and plan['study.space'] == 'all'
    and plan['study.search'] != 'grid',
  }
  row |= {
    key: float(trials[key].sum())
    for key in ('tokens', 'flops', 'seconds')
    if key in trials
  }
  # The runs of a trial differ only in seed; their mean loss counts.
  same = pd.Series([json.dumps(of) for of in values], last.index)
  losses = last['loss'].groupby(same).transform('mean')
  if math.isinf(losses.min()):
    return row | {'edges': '[]', 'off': 'no trial finished'}
  best = values[int(losses.to_numpy().argmin())]
  lower, higher = _sides(tried['lr'], best['lr'])
  return row | {
    'best_lr': best['lr'],
    'below': len(lower),
    'above': len(higher),
    'edges': json.dumps(_edges(tried, best)),
    'off': _off(tried, best, last.iloc[0], finals.iloc[0]),
  }


def _due(
  dimensions: int, plan: Mapping[str, Any], searches: int
) -> float | None:
  """Returns the trial runs that the rule asks for; None if not by rule."""
  if 'study.trials' not in plan or plan['study.trials'] != 0:
    return None
  if plan['study.search'] == 'grid':
    return None
  trials = TRIALS + TRIALS_OF_EACH * dimensions
  return float(trials * plan['study.trial_seeds'] * searches)


def _edges(
  tried: Mapping[str, Sequence[float]], best: Mapping[str, float]
) -> list[str]:
  """Returns the hyperparameters whose best value is at an edge of those tried.

  The edge is the lowest or highest value or, of many, the outer tenths of their
  log span. 0 is no edge: nothing lies beyond it.
  """
  found = []
  for name, values in tried.items():
    lower, higher = _sides(values, best[name])
    at_end = (not lower and best[name] != 0) or not higher
    if name != 'lr' and len(values) >= _DRAWS and values[0] > 0:
      span = math.log(values[-1] / values[0])
      at = math.log(best[name] / values[0]) / span
      at_end = not _EDGE <= at <= 1 - _EDGE
    if at_end:
      found.append(name)
  return found


def _planned(trials: pd.DataFrame, plan: Mapping[str, Any]) -> pd.Series:
  """Returns which trials the study planned; others were added at an edge.

  Added trials are those with learning rates outside the planned range.
  """
  key = f'study.lrs_{trials["optimizer"].iloc[0]}'
  every = trials['lr'].notna()
  if key not in plan or tables.missing(plan[key]):
    return every
  rates = json.loads(plan[key])
  if not rates:
    return every
  inside = trials['lr'].between(
    min(rates) * (1 - _SAME), max(rates) * (1 + _SAME)
  )
  return inside if inside.any() else every


def _sides(
  tried: Sequence[float], chosen: float
) -> tuple[list[float], list[float]]:
  """Returns the values of `tried` below `chosen`, and those above it."""
  return (
    [value for value in tried if value < chosen * (1 - _SAME)],
    [value for value in tried if value > chosen * (1 + _SAME)],
  )


def _off(
  tried: Mapping[str, Sequence[float]],
  best: Mapping[str, float],
  trial: Mapping[str, Any],
  final: Mapping[str, Any],
) -> str:
  """Says where final runs depart from what the search found; '' if nowhere.

  The learning rate may lie between the best one and its neighbours, as a fitted
  minimum does. Horizons may scale with the steps, the tokens or the batch.
  """
  chosen = tables.hyperparameters(final)
  said = []
  for name, values in tried.items():
    if name not in chosen or math.isclose(
      chosen[name], best[name], rel_tol=1e-3, abs_tol=1e-12
    ):
      continue
    lower, higher = _sides(values, best[name])
    if name == 'lr':
      if lower and higher and lower[-1] < chosen['lr'] < higher[0]:
        continue
    elif _is_horizon(name, chosen[name], best[name], trial, final):
      continue
    said.append(
      f'final runs have {words.name(name)} {chosen[name]:.4g}, the best trial '
      f'{best[name]:.4g}'
    )
  return '; '.join(said)


def _is_horizon(
  name: str,
  chosen: float,
  best: float,
  trial: Mapping[str, Any],
  final: Mapping[str, Any],
) -> bool:
  """Returns whether a value moved in proportion to the length or batch."""
  # A memory b stands for the horizon 1 / (1 − b); a half-life is one.
  if _kind(name) == 'memories' and not name.endswith('_half_life'):
    chosen, best = 1 - chosen, 1 - best
  if not chosen or not best:
    return False
  keys = ('planned_steps', 'planned_tokens', 'config.batch_size')
  factors = [final[k] / trial[k] for k in keys if k in trial]
  return any(
    math.isclose(chosen / best, factor**sign, rel_tol=0.02)
    for factor in factors
    if factor
    for sign in (1, -1)
  )


def _kind(name: str) -> str:
  return _KINDS[name] if name in _KINDS else _OWN


# The verdict on fairness.


def judge(tables_: Tables, tuned: pd.DataFrame) -> pd.DataFrame:
  """Returns what was unequal: group, optimizer, subject, text, refuses.

  `refuses`: whether it keeps the group's losses and scores from being ranked.
  """
  rows = []
  withdrawn = _withdrawn(tables_)
  columns = ['group', 'optimizer', 'subject', 'text', 'refuses']
  for group, of in tuned.groupby('group', sort=False):
    cells = of.to_dict('records')
    refused = [('', 'withdrawn', text) for text in withdrawn.get(group, ())]
    refused += _unequal(cells)
    searched = [row for row in cells if row['trials']]
    beside = [*_by_hand(cells), *_at_edges(cells)]
    # These searched all that their files have ranges for: not a refusal.
    beside += _lacking([row for row in searched if row['full']], searched)
    for refuses, said in ((True, refused), (False, beside)):
      rows += [(group, *one, refuses) for one in said]
  return pd.DataFrame(rows, columns=columns)


def _withdrawn(tables_: Tables) -> dict[str, list[str]]:
  """Returns group → why the authors of its studies withdraw the ranking."""
  studies, runs = tables_.studies, tables_.runs
  if 'withdrawn' not in studies:
    return {}
  reasons = studies.dropna(subset='withdrawn').set_index('study')['withdrawn']
  finals = runs[(runs['stage'] == 'final') & runs['study'].isin(reasons.index)]
  return {
    group: [f'withdrawn, since {reasons[study]}' for study in of.unique()]
    for group, of in finals.groupby('group')['study']
  }


def _by_hand(tuned: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
  """Returns (optimizer, subject, text) of memories that nobody searched.

  Unequal ones may favour an optimizer; a note beside the ranking says so.
  """
  tuned = [row for row in tuned if row['trials']]
  held = [json.loads(row['memories']) for row in tuned]
  names = {name for of in held for name in of}
  unlike = {n for n in names if len({of[n] for of in held if n in of}) > 1}
  said = []
  for row, of in zip(tuned, held, strict=True):
    shown = [f'{words.name(n)} {of[n]:g}' for n in of if n in unlike]
    if shown:
      text = f'memories set by hand ({words.join(shown)}), unlike another’s'
      said.append((row['optimizer'], 'memories', text))
  return said


def _at_edges(tuned: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
  """Returns (optimizer, subject, text) of edges that extend no search.

  A hyperparameter of little effect is often best at an edge by chance.
  """
  return [
    (
      row['optimizer'],
      'edge',
      f'its best {words.name(name)} is at the edge of the range tried',
    )
    for row in tuned
    if row['trials']
    for name in json.loads(row['edges'])
    if name != 'lr'
  ]


def _unequal(tuned: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
  """Returns (optimizer, subject, text) of each reason not to rank."""
  said = []
  for row in tuned:
    if not row['trials']:
      text = 'no search: its learning rate was set by hand'
      said.append((row['optimizer'], 'search', text))
  tuned = [row for row in tuned if row['trials']]
  for subject, key, unit in (
    ('trials', 'planned', 'trial'),
    ('tokens', 'tokens_per_trial', 'token'),
  ):
    by_rule = all(row['due'] == row['planned'] for row in tuned)
    if len({row[key] for row in tuned}) > 1 and not (
      key == 'planned' and by_rule
    ):
      said += [
        (
          row['optimizer'],
          subject,
          f'{words.plural(int(row[key]), unit)}'
          f'{" per trial" if unit == "token" else ""}, not equal',
        )
        for row in tuned
      ]
  widest = max((row['span'] for row in tuned), default=1.0)
  for row in tuned:
    optimizer = row['optimizer']
    if math.log(row['span']) < _NARROWER * math.log(widest):
      text = (
        f'learning rates span a factor of {row["span"]:.3g}, those of another '
        f'optimizer {widest:.3g}'
      )
      said.append((optimizer, 'span', text))
    if 'lr' in json.loads(row['edges']):
      text = f'its best {words.name("lr")} is the lowest or highest tried'
      said.append((optimizer, 'edge', text))
    if row['off']:
      said.append((optimizer, 'final runs', row['off']))
  return said + _lacking([row for row in tuned if not row['full']], tuned)


def _lacking(
  rows: Sequence[Mapping[str, Any]], tuned: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, str]]:
  """Returns (optimizer, subject, text) of kinds that only others searched.

  Args:
    rows: optimizers to look at.
    tuned: all searched optimizers of the group.
  """
  said = []
  for row in rows:
    own = _kinds(row)
    for other in tuned:
      found = _kinds(other)
      lacking = sorted(found - own - {_OWN})
      if _OWN in found - own:
        lacking += sorted(_FULL - own - {*lacking})
      if lacking:
        text = (
          f'no search of {words.join(lacking)}, while '
          f'{words.name(other["optimizer"])} had {words.join(sorted(found))}'
        )
        said.append((row['optimizer'], 'hyperparameters', text))
        break
  return said


def _kinds(row: Mapping[str, Any]) -> set[str]:
  return set(map(_kind, json.loads(row['searched'])))


def refusal(fairness: pd.DataFrame, group: str) -> str:
  """Says why losses and scores of a group are not ranked; '' if they are."""
  rows = fairness[(fairness['group'] == group) & fairness['refuses']]
  by_text: dict[str, list[str]] = {}
  for _, row in rows.iterrows():
    by_text.setdefault(row['text'], []).append(words.name(row['optimizer']))
  reasons = [
    f'{words.join(names)}: {text}' if any(names) else text
    for text, names in by_text.items()
  ]
  if len(reasons) > _REASONS + 1:
    more = words.plural(len(reasons) - _REASONS, 'further reason')
    reasons = [*reasons[:_REASONS], f'{more} (see "Was it fair?")']
  return '; '.join(reasons)


def answer(comparison: Comparison, groups: Sequence[str]) -> tuple[bool, str]:
  """Returns whether groups with the same search are fair, and why (not)."""
  refused = [refusal(comparison.fairness, group) for group in groups]
  if any(refused):
    return False, f'Unequal search: {next(filter(None, refused))}.'
  tuned = comparison.tuning
  tuned = tuned[tuned['group'].isin(groups)]
  if not len(tuned):
    return True, 'Nothing was searched.'
  least, most = int(tuned['planned'].min()), int(tuned['planned'].max())
  fewer = f'{least} to ' if least < most else ''
  notes = comparison.fairness
  notes = notes[notes['group'].isin(groups) & (notes['subject'] == 'memories')]
  hand = ' Memories were set by hand and differ.' if len(notes) else ''
  return True, (
    f'{fewer}{words.plural(most, "trial")} of equal length for each optimizer, '
    'learning rates over equally wide ranges, the best ones inside the range '
    f'tried.{hand}'
  )


# The section.


def sections(comparison: Comparison) -> list[section.Section]:
  """Returns the section on equal tuning and on the runs left out."""
  blocks: list[section.Block] = [
    'Within a group, only the optimizer and its hyperparameters differ: data '
    'and their order, initial weights, schedule, clipping, precision and the '
    'rest of the configuration are equal. Runs that differ otherwise are left '
    'out, as listed below. Every optimizer must have the same search: as many '
    'trials (or, by one rule, more for more hyperparameters) of as many '
    'tokens, learning rates over as wide a range, the same kinds of '
    'hyperparameters, the best learning rate inside the range tried, and '
    'final runs at that best.',
  ]
  unequal = comparison.fairness
  if len(unequal):
    names = unequal['optimizer'].map(lambda name: words.name(name) or 'all')
    effects = {True: 'not ranked', False: 'noted beside the ranking'}
    frame = unequal.assign(
      group=unequal['group'].map(words.named),
      who=names,
      effect=unequal['refuses'].map(effects),
    )
    heads = {'group': 'Group', 'who': 'Optimizer', 'text': 'What'}
    blocks.append(
      _words('What is unequal', frame, heads | {'effect': 'Effect'})
    )
  if len(comparison.left_out):
    heads = {'run': 'Run', 'reason': 'Reason'}
    blocks.append(_words('Runs left out', comparison.left_out, heads))
  blocks += map(section.Note, _environments(comparison.compared))
  return [section.Section('fairness', 'Was it fair?', blocks)]


def _words(
  title: str, frame: pd.DataFrame, heads: Mapping[str, str]
) -> section.Table:
  columns = {key: section.Column(name) for key, name in heads.items()}
  folded = len(frame) > 8
  return section.Table.of(title, frame, columns, folded=folded, style='words')


def _environments(compared: pd.DataFrame) -> list[str]:
  """Says which versions, commits or devices differ among the compared runs."""
  columns = [
    column
    for column in compared
    if column.startswith(
      ('env.git', 'env.versions.', 'env.python', 'env.device')
    )
  ]
  return [
    f'{column.removeprefix("env.").replace("_", " ")} differs among the runs: '
    f'{words.join(sorted(map(str, compared[column].dropna().unique())))}.'
    for column in columns
    if compared[column].nunique() > 1
  ]
