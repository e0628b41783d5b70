"""Whether every optimizer of a group was tuned with the same effort.

Where it was not, losses and scores are not ranked, and a table says why.
"""

from collections.abc import Mapping, Sequence
import json
import math
from typing import Any

import pandas as pd

from steepest.report import section, selection, tables, words
from steepest.report.tables import Comparison, Tables

# Kinds of hyperparameters; every optimizer that has one of a kind searches it,
# or none does. Those of no kind are an optimizer's own.
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
  'decay_fraction': 'schedule',
  'final_fraction': 'schedule',
  'attention_multiplier': 'multipliers',
  'logit_multiplier': 'multipliers',
}
_OWN = 'its own'
# What an optimizer's own hyperparameters are fair beside: the others search all
# that theirs depend on, too.
_FULL = {'learning rate', 'memories', 'weight decay'}
# The logarithms of two spans of rates may differ by so much, in all, before one
# search is called narrower. Draws do not fill their range.
_NARROWER = 0.75
# Rates that differ by less are the same.
_SAME = 1e-5
# Share of a dimension's span, at each end, that is its edge where values are
# drawn, and how many they are at least.
_EDGE, _DRAWS = 0.1, 6
# Trials of study.trials=0: so many, and so many more for each hyperparameter.
_TRIALS, _TRIALS_OF_EACH = 8, 4


# How each optimizer was tuned.


# Reasons that a sentence lists; the table of fairness has them all.
_REASONS = 2


def tuning(tables_: Tables, compared: pd.DataFrame) -> pd.DataFrame:
  """Returns one row an optimizer of a group: what its search did.

  Columns: group, optimizer, cell, trials (that ended), planned (of these, the
  others were added because the best lay at an edge), pruned, diverged,
  tokens_per_trial, and of what all of them took tokens, flops, seconds;
  searched (JSON list of names, lr first), memories (JSON: those set by hand),
  span (highest over lowest planned rate), best_lr, chosen_lr, below and
  above (how many tried rates are lower and higher than the best one), edges
  (JSON list of names whose best value is the lowest or highest tried), off (in
  words, where final runs are not at what the search found), due (trials by the
  rule for what is searched; None: not by rule). Without a search: 0 trials.
  """
  runs = tables_.runs
  trials = runs[(runs['stage'] == 'tune') & (runs['status'] != 'unfinished')]
  plans = {s['study']: s for s in tables_.studies.to_dict('records')}
  rows = []
  for (group, optimizer), finals in compared.groupby(
    ['group', 'optimizer'], sort=False
  ):
    cell = finals['cell'].iloc[0]
    found = selection.searches(trials[trials['cell'] == cell])
    row = {'group': group, 'optimizer': optimizer, 'cell': cell, 'trials': 0}
    if found:
      # Of several proxies the largest is what final runs rest on.
      row |= _tuned([of for _, of in found], finals, plans)
    rows.append(row)
  frame = pd.DataFrame(rows, columns=_TUNING if not rows else None)
  for column in _TUNING:
    if column not in frame:
      frame[column] = None
  return frame


_TUNING = [
  'group',
  'optimizer',
  'cell',
  'trials',
  'planned',
  'pruned',
  'diverged',
  'tokens_per_trial',
  'tokens',
  'flops',
  'seconds',
  'searched',
  'memories',
  'span',
  'best_lr',
  'chosen_lr',
  'below',
  'above',
  'edges',
  'off',
  'due',
]


def _tuned(
  searches: Sequence[pd.DataFrame],
  finals: pd.DataFrame,
  plans: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
  trials = pd.concat(searches)
  last = searches[-1]
  study = last['study'].iloc[0]
  plan = plans[study] if study in plans else {}
  planned = _planned(last, plan)
  values = [tables.hyperparameters(run) for run in last.to_dict('records')]
  names = [
    name
    for name in values[0]
    if name == 'lr' or len({of[name] for of in values if name in of}) > 1
  ]
  names.sort(key=lambda name: name != 'lr')
  row = {
    'trials': len(trials),
    'planned': int(planned.sum()) * len(searches),
    'pruned': int((trials['status'] == 'pruned').sum()),
    'diverged': int((trials['status'] == 'diverged').sum()),
    'tokens_per_trial': int(last['planned_tokens'].max()),
    'searched': json.dumps(names),
    'memories': json.dumps(_memories(values[0], names)),
    'span': last['lr'][planned].max() / last['lr'][planned].min(),
    'chosen_lr': float(finals['lr'].iloc[0]),
    'due': _due(len(names), plan, len(searches)),
  }
  row |= {
    key: float(trials[key].sum())
    for key in ('tokens', 'flops', 'seconds')
    if key in trials
  }
  # Runs of one trial differ in the seed alone; their mean loss counts.
  same = pd.Series([json.dumps(of) for of in values], last.index)
  losses = last['loss'].groupby(same).transform('mean')
  if math.isinf(losses.min()):
    return row | {'edges': '[]', 'off': 'no trial finished'}
  best = values[int(losses.to_numpy().argmin())]
  tried = {n: sorted({of[n] for of in values if n in of}) for n in names}
  below, above = _sides(tried['lr'], best['lr'])
  return row | {
    'best_lr': best['lr'],
    'below': below,
    'above': above,
    'edges': json.dumps(_edges(tried, best)),
    'off': _off(tried, best, last.iloc[0], finals.iloc[0]),
  }


def _memories(
  hyperparameters: Mapping[str, float], searched: Sequence[str]
) -> dict[str, float]:
  """Returns the memories that all trials share, since nobody searched them."""
  return {
    name: value
    for name, value in hyperparameters.items()
    if name in _KINDS and _KINDS[name] == 'memories' and name not in searched
  }


def _due(
  dimensions: int, plan: Mapping[str, Any], searches: int
) -> float | None:
  """Returns the runs of trials by the rule, None where a study has another."""
  if 'study.trials' not in plan or plan['study.trials'] != 0:
    return None
  if plan['study.search'] == 'grid':
    return None
  trials = _TRIALS + _TRIALS_OF_EACH * dimensions
  return float(trials * plan['study.trial_seeds'] * searches)


def _planned(trials: pd.DataFrame, plan: Mapping[str, Any]) -> pd.Series:
  """Returns which trials the study set out with; others were added at an edge.

  Those have rates beyond the planned ones, which is one rule for all.
  """
  key = f'study.lrs_{trials["optimizer"].iloc[0]}'
  if key not in plan or tables.missing(plan[key]):
    return trials['lr'].notna()
  rates = json.loads(plan[key])
  low, high = min(rates) * (1 - _SAME), max(rates) * (1 + _SAME)
  inside = trials['lr'].between(low, high)
  return inside if inside.any() else trials['lr'].notna()


def _sides(tried: Sequence[float], chosen: float) -> tuple[int, int]:
  """Returns how many of `tried` are lower and how many are higher."""
  return (
    sum(value < chosen * (1 - _SAME) for value in tried),
    sum(value > chosen * (1 + _SAME) for value in tried),
  )


def _edges(
  tried: Mapping[str, Sequence[float]], best: Mapping[str, float]
) -> list[str]:
  """Returns the hyperparameters whose best value is at an edge of those tried.

  The lowest or highest, or of many the outer tenths of their span in logs. 0 is
  an end that nothing lies beyond.
  """
  found = []
  for name, values in tried.items():
    below, above = _sides(values, best[name])
    at_end = (below == 0 and best[name] != 0) or above == 0
    if name != 'lr' and len(values) >= _DRAWS and values[0] > 0:
      span = math.log(values[-1] / values[0])
      at = math.log(best[name] / values[0]) / span
      at_end = not _EDGE <= at <= 1 - _EDGE
    if at_end:
      found.append(name)
  return found


def _off(
  tried: Mapping[str, Sequence[float]],
  best: Mapping[str, float],
  trial: Mapping[str, Any],
  final: Mapping[str, Any],
) -> str:
  """Says where final runs are not at what the search found; '' if they are.

  A rate may lie between the best one and its neighbours, as a fitted minimum
  does. What is a horizon may change with the steps, the tokens or the batch.
  """
  chosen = tables.hyperparameters(final)
  said = []
  for name in tried:
    if name not in chosen or math.isclose(
      chosen[name], best[name], rel_tol=1e-3, abs_tol=1e-12
    ):
      continue
    if name == 'lr':
      lower = [v for v in tried['lr'] if v < best['lr'] * (1 - _SAME)]
      higher = [v for v in tried['lr'] if v > best['lr'] * (1 + _SAME)]
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
  if _KINDS.get(name) == 'memories':
    chosen, best = 1 - chosen, 1 - best
  if not chosen or not best:
    return False
  keys = ('planned_steps', 'planned_tokens', 'config.batch_size')
  factors = [final[k] / trial[k] for k in keys if k in trial]
  ratio = chosen / best
  return any(
    math.isclose(ratio, factor, rel_tol=0.02) for factor in factors if factor
  ) or any(
    math.isclose(ratio, 1 / factor, rel_tol=0.02)
    for factor in factors
    if factor
  )


# The verdict on fairness.


def judge(tables_: Tables, tuned: pd.DataFrame) -> pd.DataFrame:
  """Returns group, optimizer, subject, text, refuses: what was unequal.

  `refuses`: losses and scores of the group are not ranked for it.
  """
  rows = []
  withdrawn = _withdrawn(tables_)
  columns = ['group', 'optimizer', 'subject', 'text', 'refuses']
  for group, of in tuned.groupby('group', sort=False):
    cells = of.to_dict('records')
    refused = [('', 'withdrawn', text) for text in withdrawn.get(group, ())]
    refused += _unequal(cells)
    said_beside = [*_by_hand(cells), *_at_edges(cells)]
    for refuses, said in ((True, refused), (False, said_beside)):
      rows += [(group, *one, refuses) for one in said]
  return pd.DataFrame(rows, columns=columns)


def _withdrawn(tables_: Tables) -> dict[str, list[str]]:
  """Returns by group why the authors of its studies take a ranking back."""
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

  Unlike ones may favour an optimizer, which is said beside the ranking.
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

  What matters little is best at an edge by chance as often as not.
  """
  return [
    (
      row['optimizer'],
      'edge',
      f'its best {words.name(name)} is at the edge of what was tried',
    )
    for row in tuned
    if row['trials']
    for name in json.loads(row['edges'])
    if name != 'lr'
  ]


def _unequal(tuned: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
  """Returns (optimizer, subject, text) of what speaks against a ranking."""
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
          f'{" in a trial" if unit == "token" else ""}, not equal',
        )
        for row in tuned
      ]
  widest = max((row['span'] for row in tuned), default=1.0)
  kinds = {row['optimizer']: _kinds(row) for row in tuned}
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
    for other, found in kinds.items():
      lacking = sorted(found - kinds[optimizer] - {_OWN})
      if _OWN in found - kinds[optimizer]:
        lacking += sorted(_FULL - kinds[optimizer] - {*lacking})
      if lacking:
        text = (
          f'no search of {words.join(lacking)}, beside that of '
          f'{words.join(sorted(found))} for {words.name(other)}'
        )
        said.append((optimizer, 'hyperparameters', text))
        break
  return said


def _kinds(row: Mapping[str, Any]) -> set[str]:
  names = json.loads(row['searched'])
  return {_KINDS[name] if name in _KINDS else _OWN for name in names}


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


# The section.


def sections(comparison: Comparison) -> list[section.Section]:
  """Returns what was equal and what was not, and every run left out."""
  blocks: list[section.Block] = [
    'Data and their order, initial weights, schedule, clipping, precision and '
    'everything else of a configuration are equal within a group, but for the '
    'optimizer and its hyperparameters; what differs is left out below. Every '
    'optimizer is to have the same search: as many trials of as many tokens '
    '(or by one rule more for more hyperparameters), over as wide a span of '
    'rates, of the same kinds of hyperparameters, its best rate inside what '
    'was tried, and final runs at that best.',
    _tuning_table(comparison),
  ]
  unequal = comparison.fairness
  if len(unequal):
    columns = ['Group', 'Optimizer', 'What', 'Effect']
    rows = [
      [
        words.named(row['group']),
        words.name(row['optimizer']) or 'all',
        row['text'],
        'not ranked' if row['refuses'] else 'said beside the ranking',
      ]
      for _, row in unequal.iterrows()
    ]
    blocks.append(_words('What is unequal', columns, rows))
  if len(comparison.left_out):
    rows = comparison.left_out[['run', 'reason']].to_numpy().tolist()
    blocks.append(_words('Runs left out', ['Run', 'Reason'], rows))
  notes = _environments(comparison.compared)
  if notes:
    blocks += [section.Note(note) for note in notes]
  return [section.Section('fairness', 'Was it fair?', blocks)]


def _words(
  title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> section.Table:
  heads = [section.Column(name) for name in columns]
  return section.Table(title, heads, rows, folded=len(rows) > 8, style='words')


def _tuning_table(comparison: Comparison) -> section.Table:
  tuned = comparison.tuning
  tokens = words.count_unit(float(tuned['tokens_per_trial'].max() or 0))
  seconds = words.unit('seconds', tuned['seconds'])
  rows: list[list[section.Cell | str] | str] = []
  for group, of in tuned.groupby('group', sort=False):
    if tuned['group'].nunique() > 1:
      rows.append(words.named(group))
    for row in of.to_dict('records'):
      head = section.Cell(
        words.name(row['optimizer']), optimizer=row['optimizer']
      )
      if not row['trials']:
        rows.append([head, section.Cell('none', style='bad'), *['–'] * 6])
        continue
      ended = [
        f'{int(row[key])} {text}'
        for key, text in (('diverged', 'diverged'), ('pruned', 'ended early'))
        if row[key]
      ]
      added = int(row['trials'] - row['planned'])
      ended += [f'{added} added at an edge'] if added else []
      sides = '–'
      if not tables.missing(row['below']):
        sides = f'{int(row["below"])} lower, {int(row["above"])} higher tried'
      names = json.loads(row['searched'])
      if row['due'] == row['planned']:
        ended.insert(0, f'{_TRIALS} + {_TRIALS_OF_EACH} × {len(names)}')
      rows.append(
        [
          head,
          section.Cell(str(int(row['planned'])), ', '.join(ended)),
          tokens.number(row['tokens_per_trial']),
          words.join(words.name(name) for name in names),
          f'{row["span"]:.3g}×',
          section.Cell(words.rate(row['best_lr']), sides),
          words.rate(row['chosen_lr']),
          seconds.number(row['seconds']),
        ]
      )
  columns = [
    section.Column('Optimizer'),
    section.Column('Trials', number=True),
    section.Column('Tokens of a trial', tokens.label, number=True),
    section.Column('Searched'),
    section.Column('Span of rates', number=True),
    section.Column('Best rate', number=True),
    section.Column('Rate of final runs', number=True),
    section.Column('Time of all trials', seconds.label, number=True),
  ]
  return section.Table('Search of each optimizer', columns, rows, style='wide')


def _environments(compared: pd.DataFrame) -> list[str]:
  """Says which versions, commits or devices differ among the compared runs."""
  return [
    f'{column.removeprefix("env.").replace("_", " ")} differs among the runs: '
    f'{words.join(sorted(map(str, compared[column].dropna().unique())))}.'
    for column in compared
    if column.startswith(
      ('env.git', 'env.versions.', 'env.python', 'env.device')
    )
    and compared[column].dropna().nunique() > 1
  ]
