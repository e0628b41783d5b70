"""Two models that answered the same questions, compared question by question.

Hard questions are hard for both models, so paired differences need fewer
questions than unpaired accuracies.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import os
import pathlib
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from steepest.data import reading
from steepest.eval import tasks
from steepest.report import (
  differences,
  page,
  runs,
  section,
  statistics,
  verdicts,
  words,
)

_FILES = ('results.json', 'predictions.jsonl', 'requests.jsonl')
# Kinds of the keys that only this comparison reads, by reading.KINDS.
_INFO = {
  'model': 'text',
  'limit': 'count',
  'max_length': 'count',
  'shots': 'object',
  'tokenizer': 'object',
  'truncated': 'count',
}
_REQUEST = {
  'task': 'text',
  'doc_id': 'text, number or list of them',
  'is_greedy': 'truth value',
  'loglikelihood': 'number',
}
_RULES = (
  'A and B answered the same questions: both the questions and the files that '
  'hold them were checked to be equal. A − B is the mean difference over the '
  'questions (for perplexities, of the mean log-likelihood per word); its '
  'standard error is the differences’ standard deviation over √n. The 95 % '
  'interval and p are Student’s t for paired differences. “Only A” and “only '
  'B” count the questions that only that model got right; p (signs) is '
  'McNemar’s exact test of these two counts.',
  'p (all) is corrected for the number of rows (Holm 1979); a difference is '
  'marked if it is below 0.05. The score of a group is the mean over all of '
  'its questions. Training seeds add a spread that no number of questions '
  'shows.',
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The files that launch.evaluate, or a run in its workdir, wrote.

  Attributes:
    path: directory of results.json.
    info: how the model was scored, as in results.json.
    metrics: task or group → metric → value.
    answers: task, metric, question, value: 1 if right, 0 if wrong; for
      `perplexity` the log-likelihood.
  """

  path: pathlib.Path
  info: Mapping[str, Any]
  metrics: Mapping[str, Mapping[str, Any]]
  answers: pd.DataFrame

  @property
  def model(self) -> str:
    return str(self.info['model'])


@dataclasses.dataclass(frozen=True)
class Pairing:
  """Two models compared.

  Attributes:
    first, second: the evaluations.
    pairs: task, metric, n (questions), first, second (the models' scores),
      value (first − second; of log-likelihoods for `perplexity`) and the other
      numbers of statistics.question_test, p_all (p corrected for all rows).
    notes: what was left out, and what differs besides the model.
  """

  first: Evaluation
  second: Evaluation
  pairs: pd.DataFrame
  notes: list[str]


def read(directory: str | os.PathLike[str]) -> Evaluation:
  """Reads results.json and its neighbours from DIR or DIR/eval.

  Raises:
    FileNotFoundError: there is none.
    ValueError: a file is damaged.
  """
  path = pathlib.Path(directory)
  if not (path / 'results.json').exists() and (path / 'eval').is_dir():
    path /= 'eval'
  for name in _FILES:
    if not (path / name).exists():
      raise FileNotFoundError(
        f'{path}: no {name}; --compare takes directories that launch.evaluate '
        'wrote, or workdirs of runs that scored tasks'
      )
  info, metrics = runs.read_results(path / 'results.json')
  reading.require(info, _INFO, f'{path}/results.json: info', 'evaluate again')
  where = f'{path}/results.json: tokenizer'
  reading.require(info['tokenizer'], {'sha256': 'text'}, where)
  rows = [
    (r['task'], r['metric'], r['doc_id'], float(r['pred'] == r['gold']))
    for r in runs.read_predictions(path / 'predictions.jsonl')
  ]
  # Tasks with a single continuation keep their answers in the requests.
  of_words = {name for name, of in metrics.items() if 'perplexity' in of}
  requests = reading.json_lines(path / 'requests.jsonl', 'evaluate again')
  for number, r in enumerate(requests if of_words else (), 1):
    where = f'{path}/requests.jsonl, row {number}'
    reading.require(r, _REQUEST, where, 'evaluate again')
    if r['task'] in of_words:
      at = r['task'], r['doc_id']
      rows.append((at[0], 'acc', at[1], float(r['is_greedy'])))
      rows.append((at[0], 'perplexity', at[1], float(r['loglikelihood'])))
  columns = ['task', 'metric', 'question', 'value']
  answers = pd.DataFrame(rows, columns=columns)
  answers = answers.drop_duplicates(columns[:3], keep='last')
  return Evaluation(path, info, metrics, answers)


def compare(first: Evaluation, second: Evaluation) -> Pairing:
  """Compares two evaluations on every task and metric that both have.

  Raises:
    ValueError: a shared task had different questions, or no task is shared.
  """
  found = [
    {(t, m) for t, of in e.metrics.items() for m in runs.METRICS if m in of}
    for e in (first, second)
  ]
  shared = _outermost(found[0] & found[1])
  if not shared:
    raise ValueError(
      f'{first.path} and {second.path} have no task in common: score both on '
      'the same tasks'
    )
  rows = []
  for task, metric in shared:
    _check_same(first, second, task)
    a, b = (_values(e, task, metric) for e in (first, second))
    common = a.index.intersection(b.index)
    if not len(common) == len(a) == len(b):
      raise ValueError(
        f'{task}: {first.path} holds {len(a)} questions, {second.path} '
        f'{len(b)}, {len(common)} of them the same: score both with the same '
        '--limit'
      )
    row = {
      'task': task,
      'metric': metric,
      'n': len(common),
      'first': float(first.metrics[task][metric]),
      'second': float(second.metrics[task][metric]),
    }
    rows.append(row | statistics.question_test(a[common], b[common]))
  pairs = pd.DataFrame(rows)
  pairs['p_all'] = math.nan
  known = pairs['p'].notna()
  pairs.loc[known, 'p_all'] = statistics.holm(pairs.loc[known, 'p'])
  return Pairing(first, second, pairs, _notes(first, second, found))


def _outermost(found: set[tuple[str, str]]) -> list[tuple[str, str]]:
  frame = pd.DataFrame(found, columns=['task', 'metric'])
  return verdicts.outermost(frame)


def _leaves(task: str) -> tuple[str, ...]:
  return tuple(tasks.GROUPS[task]) if task in tasks.GROUPS else (task,)


def _values(of: Evaluation, task: str, metric: str) -> pd.Series:
  """Returns the answers to the questions of a task or a group."""
  answers = of.answers
  held = answers[
    answers['task'].isin(_leaves(task)) & (answers['metric'] == metric)
  ]
  if len(held) != of.metrics[task]['n']:
    raise ValueError(
      f'{of.path}: {task} has {len(held)} answers in predictions.jsonl, '
      f'{of.metrics[task]["n"]} in results.json: evaluate again'
    )
  return held.set_index(['task', 'question'])['value']


def _check_same(first: Evaluation, second: Evaluation, task: str) -> None:
  """Raises ValueError if a task's files or its few-shot examples differ."""
  files = {tasks.TASKS[t].file for t in _leaves(task) if t in tasks.TASKS}
  for name in sorted(first.info['data'].keys() & second.info['data'].keys()):
    stem = pathlib.Path(name).name.split('.')[0].removesuffix('_dev')
    a, b = (e.info['data'][name]['sha256'] for e in (first, second))
    if stem in files and a != b:
      raise ValueError(
        f'{task}: {name} of {first.path} has sha256 {a[:12]}…, that of '
        f'{second.path} {b[:12]}…: score both on the same --data'
      )
  shots = [
    {t: e.info['shots'][t] for t in _leaves(task) if t in e.info['shots']}
    for e in (first, second)
  ]
  if shots[0] != shots[1]:
    raise ValueError(
      f'{task}: {first.path} and {second.path} used different numbers of '
      'few-shot examples: score both with the same --num_fewshot'
    )


def _notes(
  first: Evaluation, second: Evaluation, found: Sequence[set[tuple[str, str]]]
) -> list[str]:
  notes = []
  for e, own in zip((first, second), found, strict=True):
    alone = {t for t, _ in own} - {t for t, _ in found[0] & found[1]}
    outer = [t for t, _ in _outermost({(t, 'acc') for t in alone})]
    if outer:
      notes.append(f'only {e.path} has {", ".join(outer)}: not compared')
    if e.info['truncated']:
      count = words.plural(int(e.info['truncated']), 'request')
      notes.append(
        f'{e.path}: {count} lost their start, to fit into '
        f'{e.info["max_length"]} tokens'
      )
    if e.info['limit']:
      notes.append(
        f'{e.path}: limited to {e.info["limit"]} questions a task, so the '
        'scores are not those of the full benchmarks'
      )
  if first.info['tokenizer']['sha256'] != second.info['tokenizer']['sha256']:
    notes.append('the models have different tokenizers')
  return notes


def summary(pairing: Pairing) -> str:
  """Says in one sentence which model is better at what."""
  pairs = pairing.pairs
  clauses = []
  for letter, sign in (('A', 1), ('B', -1)):
    better = pairs[_holds(pairs) & (sign * pairs['value'] > 0)]
    names = [_name(pair) for pair in better.to_dict('records')]
    if names:
      clauses.append(f'{letter} is better on {words.join(names)}')
  rest = int((~_holds(pairs)).sum())
  if not clauses:
    return 'No difference is shown on any task.'
  if rest:
    noun = 'other' if rest == 1 else 'others'
    clauses.append(f'no difference is shown on {rest} {noun}')
  return f'{"; ".join(clauses)}.'


def _holds(pairs: pd.DataFrame) -> pd.Series:
  return pairs['p_all'] < statistics.LEVEL


def _name(pair: Mapping[str, Any]) -> str:
  return words.column(f'{pair["task"]}/{pair["metric"]}')


def table(pairing: Pairing) -> pd.DataFrame:
  """Returns the differences as text, under the page's column heads."""
  rows = []
  for pair in pairing.pairs.to_dict('records'):
    unit = words.unit(f'{pair["task"]}/{pair["metric"]}')
    words_ = pair['metric'] == 'perplexity'
    step = words.unit('eval_loss') if words_ else unit
    rows.append(
      {
        'Task': _name(pair),
        'Questions': f'{pair["n"]:,}',
        'A': unit.number(pair['first']),
        'B': unit.number(pair['second']),
        'A − B': step.difference(pair['value']),
        '± error': step.number(pair['stderr']),
        '95 %': step.interval(pair['low'], pair['high']),
        'Only A': '' if words_ else f'{pair["first_only"]:,}',
        'Only B': '' if words_ else f'{pair["second_only"]:,}',
        'p': words.p_value(pair['p']),
        'p (signs)': words.p_value(pair['p_signs']),
        'p (all)': words.p_value(pair['p_all']),
      }
    )
  return pd.DataFrame(rows)


def print_table(pairing: Pairing, console: Console) -> None:
  """Prints the differences for a terminal of 100 columns."""
  shown = table(pairing).drop(columns=['Only A', 'Only B', 'p (signs)'])
  rows = shown.to_numpy(dtype=object).tolist()
  for row, holds in zip(rows, _holds(pairing.pairs), strict=True):
    row[0] = f'{"●" if holds else ""}{row[0]}'
  words.print_table(console, list(shown.columns), rows)
  for letter, e in zip('AB', (pairing.first, pairing.second), strict=True):
    console.print(Text(f'{letter}: {e.model} ({e.path})'))
  console.print(Text(summary(pairing)))
  for note in pairing.notes:
    console.print(Text(f'note: {note}'))


def write(
  pairing: Pairing,
  out_dir: str | os.PathLike[str],
  origin: Mapping[str, str],
) -> pathlib.Path:
  """Writes compare.html and compare.csv; returns the page's path.

  Args:
    pairing: to show.
    out_dir: created if missing.
    origin: name → value: command, date and so on.
  """
  out = pathlib.Path(out_dir)
  out.mkdir(parents=True, exist_ok=True)
  page.replace(out / 'compare.csv', pairing.pairs.to_csv(index=False))
  shown = table(pairing).assign(counts=_holds(pairing.pairs))
  columns = {
    name: section.Column(name, number=name != 'Task')
    for name in shown.columns[:-1]
  }
  columns['Task'] = section.Column('Task', best='counts')
  blocks: list[section.Block] = [
    *(section.Note(note, 'warning') for note in pairing.notes),
    *_figure(pairing),
    section.Table.of('Differences', shown, columns),
  ]
  sides = zip('AB', (pairing.first, pairing.second), strict=True)
  return page.write(
    out / 'compare.html',
    title='Two models on the same questions',
    subtitle=' · '.join(f'{side}: {e.model} ({e.path})' for side, e in sides),
    sections=[
      section.Section('differences', summary(pairing), blocks, False),
      section.Section('rules', 'What the numbers are', _RULES, False),
    ],
    origin=origin,
  )


def _figure(pairing: Pairing) -> list[section.Figure]:
  pairs = pairing.pairs.assign(counts=_holds(pairing.pairs))
  pairs = pairs[pairs['metric'] != 'perplexity']
  if not len(pairs):
    return []
  points = {key: 100 * pairs[key] for key in ('value', 'low', 'high')}
  frame = pairs.assign(
    **points,
    panel='',
    optimizer='',
    label=[_name(pair) for pair in pairs.to_dict('records')],
    p_holm=pairs['p_all'],
  )
  return [
    differences.forest(
      'differences',
      frame,
      'A − B (points)',
      'Accuracy of A minus that of B with its 95 % interval; right of the line '
      'A is better. Filled marks: significant after correction.',
      form='.1f',
    )
  ]
