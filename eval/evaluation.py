"""Scores a model on benchmarks, alone or while it trains."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import time
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from steepest.data import benchmarks, files, tokenizers
from steepest.data.tokenizers import Tokenizer
from steepest.eval import (
  likelihoods,
  metrics as metrics_lib,
  questions as questions_lib,
  requests as requests_lib,
  tasks as tasks_lib,
)
from steepest.eval.likelihoods import Features, Progress, Score, ScoreFn

# (features, mesh, context, tokenizer_dir, workdir) → (params, steps done,
# whether the run ends) → scores by TASK/METRIC.
Evaluate = Callable[[Any, int, bool], dict[str, float]]
MakeEvaluate = Callable[
  [Features, Mesh | None, int, str | None, pathlib.Path], Evaluate
]

LIMIT_RULE = (
  'the first N questions of a task; all selected MMLU subjects together count '
  'as one task, whose questions are taken one from each subject in turn'
)


@dataclasses.dataclass(frozen=True)
class Suite:
  """Benchmarks tokenised for models that share a tokenizer.

  Attributes:
    selection: tasks and groups.
    questions: their documents.
    requests: those of `questions`, in order, then the user's pairs.
    info: what was read: tokenizer, limit, data files with their hashes.
  """

  selection: tasks_lib.Selection
  questions: tuple[questions_lib.Question, ...]
  requests: Sequence[requests_lib.Request]
  info: Mapping[str, Any]

  def check(self, max_length: int) -> None:
    """Raises a ValueError if a continuation exceeds `max_length` tokens."""
    for request in self.requests:
      requests_lib.truncate(request, max_length)


@dataclasses.dataclass(frozen=True)
class Results:
  """Scores of a model.

  Attributes:
    info: how they were obtained; see `run`.
    metrics: task or group → {metric: value, metric_stderr: value, n: count}.
    rows: for each request its strings, ids, log-likelihood and is_greedy.
    predictions: for each question and accuracy, the index chosen and the gold.
  """

  info: dict[str, Any]
  metrics: dict[str, dict[str, Any]]
  rows: list[dict[str, Any]]
  predictions: list[dict[str, Any]]

  def write(self, directory: pathlib.Path) -> None:
    """Writes results.json, requests.jsonl and predictions.jsonl."""
    files.write(directory / 'requests.jsonl', _lines(self.rows))
    files.write(directory / 'predictions.jsonl', _lines(self.predictions))
    results = {'info': self.info, 'metrics': self.metrics}
    text = json.dumps(results, indent=1) + '\n'
    # Written last: if it exists, the others are complete.
    files.write(directory / 'results.json', [text.encode()])

  def show(self, console: Console) -> None:
    """Prints a table of the scores, and what to know of them."""
    table = Table('task', 'metric', 'value', 'n', 'chance')
    groups = [name for name in self.metrics if name in tasks_lib.GROUPS]
    members = [task for name in groups for task in tasks_lib.GROUPS[name]]
    for task, values in self.metrics.items():
      if task in members:
        continue
      chances = self.info['chance']
      chance = f'{chances[task]:.3f}' if task in chances else ''
      for name, value in values.items():
        if name == 'n' or name.endswith('_stderr'):
          continue
        error = values[f'{name}_stderr']
        text = f'{value:.4g}' + ('' if error is None else f' ± {error:.2g}')
        of = chance if name.startswith('acc') else ''
        table.add_row(task, name, text, str(values['n']), of)
    if self.metrics:
      console.print(table)
    shots, limit = self.info['shots'], self.info['limit']
    truncated = self.info['truncated']
    counts = ', '.join(map(str, sorted(set(shots.values()))))
    which = 'all tasks' if len(shots) == len(self.info['tasks']) else 'some'
    notes = {
      f'{self.info["requests"]} requests, {self.info["seconds"]:.1f} s': True,
      'subjects of groups are in results.json': members,
      f'{counts} shots in {which}': shots,
      f'limit {limit}: {self.info["limit_rule"]}': limit,
      f'{truncated} requests lost their start': truncated,
    }
    print(*(note for note, holds in notes.items() if holds), sep='\n')


def prepare(
  tokenizer: Tokenizer,
  tasks: str | tasks_lib.Selection,
  data_dir: str | os.PathLike[str],
  limit: int = 0,
) -> Suite:
  """Reads and tokenises benchmarks.

  Args:
    tokenizer: the model's.
    tasks: what to score on, as `tasks.select` takes or returns it.
    data_dir: holds `<file>.jsonl[.gz]` of every task.
    limit: questions per task, see LIMIT_RULE; 0: all.

  Raises:
    FileNotFoundError: documents are missing.
    ValueError: a task is unknown, or a document is malformed.
  """
  directory = pathlib.Path(data_dir)
  selection = tasks_lib.select(tasks) if isinstance(tasks, str) else tasks
  questions = questions_lib.read_questions(
    selection.tasks, directory, limit, selection.limits
  )
  found = {question.task.family for question in questions}
  for task in selection.tasks:
    if task.family not in found:
      path = questions_lib.find_file(directory, task.file)
      raise ValueError(f'{path} has no document for {task.family}')
  info = {
    'tasks': [task.name for task in selection.tasks],
    'limit': limit,
    'limits': selection.limits,
    'limit_rule': LIMIT_RULE,
    'shots': {t.name: t.shots for t in selection.tasks if t.shots},
    'data': {
      f'{stem}.jsonl': _describe(questions_lib.find_file(directory, stem))
      for stem in questions_lib.stems(selection.tasks)
    },
    'tokenizer': {'name': tokenizer.name, 'sha256': tokenizer.sha256},
  }
  requests = requests_lib.build(tokenizer, questions)
  return Suite(selection, tuple(questions), requests, info)


def add_requests(suite: Suite, path: str, tokenizer: Tokenizer) -> Suite:
  """Returns a suite that includes a file's pairs, which have no metrics.

  Args:
    suite: is not changed.
    path: see `requests.read_requests`; '': no file.
    tokenizer: the suite's.
  """
  if not path:
    return suite
  file = pathlib.Path(path)
  given = requests_lib.read_requests(file, tokenizer)
  return dataclasses.replace(
    suite,
    requests=(*suite.requests, *given),
    info={**suite.info, 'given': _describe(file)},
  )


def run(
  score_fn: ScoreFn,
  params: Any,
  suite: Suite,
  max_length: int,
  progress: Progress | None = None,
) -> Results:
  """Scores a model.

  Args:
    score_fn: the model's scorer.
    params: the model's.
    suite: what to score it on.
    max_length: the model's longest input, in tokens.
    progress: called with the numbers of requests done and in all.

  Returns:
    Results, whose `info` adds to the suite's: `max_length`; `chance`, accuracy
    of guessing by task and group; `requests`; `truncated`, requests that lost
    their start; `empty`, selected tasks without a question; `seconds` of wall
    time, including compilation.

  Raises:
    ValueError: a continuation is longer than `max_length`.
  """
  start = time.perf_counter()
  scores = score_fn(params, suite.requests, max_length, progress)
  answered = _by_task(suite.questions, scores)
  metrics = {}
  chance = {}
  predictions: list[dict[str, Any]] = []
  for name, (questions, answers) in answered.items():
    metrics[name] = metrics_lib.summarize(questions, answers)
    chance[name] = metrics_lib.chance(questions)
    predictions += _predictions(questions, answers)
  for group, names in suite.selection.groups.items():
    present = [name for name in names if name in metrics]
    if present:
      metrics[group] = metrics_lib.pool([metrics[name] for name in present])
      weights = [(metrics[name]['n'], chance[name]) for name in present]
      chance[group] = sum(n * c for n, c in weights) / metrics[group]['n']
  info = {
    **suite.info,
    'max_length': max_length,
    'chance': {name: c for name, c in chance.items() if c is not None},
    'requests': len(suite.requests),
    'truncated': sum(
      len(r.context_ids) + len(r.continuation_ids) > max_length + 1
      for r in suite.requests
    ),
    'empty': [t.name for t in suite.selection.tasks if t.name not in metrics],
    'seconds': time.perf_counter() - start,
  }
  return Results(info, metrics, describe(suite.requests, scores), predictions)


def evaluator(tasks: str, data: str, limit: int) -> MakeEvaluate | None:
  """Returns a function that makes the callback by which a run scores itself.

  Its arguments are the run's features function (likelihoods.py), the mesh of
  its parameters, its context length, its tokenizer's directory and its workdir.
  The callback returns the scores of every group and of every task outside a
  group; after the last step it also writes WORKDIR/eval/, like launch.evaluate.

  Args:
    tasks: see `tasks.select`; '': none, and there is no callback.
    data: where the documents are, see `benchmarks.locate`.
    limit: questions per task, see LIMIT_RULE; 0: all.

  Raises:
    OSError: documents are missing.
    ValueError: the data have no tokenizer, a task is unknown, or a
      continuation does not fit into the model.
  """
  if not tasks:
    return None

  def make_evaluate(
    features: Features,
    mesh: Mesh | None,
    context: int,
    tokenizer_dir: str | None,
    workdir: pathlib.Path,
  ) -> Evaluate:
    if tokenizer_dir is None:
      raise ValueError(
        f'eval_tasks={tasks} needs a tokenizer, and a flat token file has '
        'none: use shards or eval_tasks=""'
      )
    stems = questions_lib.stems(tasks_lib.select(tasks).tasks)
    where = str(benchmarks.locate(data, stems))
    definition = epath.Path(tokenizer_dir) / 'tokenizer.json'
    suite = _suite(
      tokenizer_dir, definition.read_text('utf-8'), tasks, where, limit
    )
    suite.check(context)
    score_fn = _score_fn(features, mesh)

    def evaluate(params: Any, steps: int, last: bool) -> dict[str, float]:
      results = run(score_fn, params, suite, context)
      if last and jax.process_index() == 0:
        info = {'model': f'ckpt:{workdir}', 'steps': steps, **results.info}
        dataclasses.replace(results, info=info).write(workdir / 'eval')
      return _ungrouped(results, suite.selection)

    return evaluate

  return make_evaluate


@functools.lru_cache(maxsize=4)
def _suite(
  tokenizer_dir: str, definition: str, tasks: str, data: str, limit: int
) -> Suite:
  """Returns the questions, tokenised once for all runs of a tokenizer."""
  del definition  # Part of the key: another tokenizer may be there now.
  tokenizer = tokenizers.load(f'hf:{tokenizer_dir}')
  return prepare(tokenizer, tasks, data, limit)


@functools.lru_cache(maxsize=1)
def _score_fn(features: Features, mesh: Mesh | None) -> ScoreFn:
  """Returns a scorer that compiles once for all runs of a program."""
  return likelihoods.ScoreFn(features, mesh)


def _ungrouped(
  results: Results, selection: tasks_lib.Selection
) -> dict[str, float]:
  grouped = {task for names in selection.groups.values() for task in names}
  return {
    f'{task}/{metric}': value
    for task, values in results.metrics.items()
    if task not in grouped
    for metric, value in values.items()
    if value is not None
  }


def describe(
  requests: Sequence[requests_lib.Request], scores: Sequence[Score]
) -> list[dict[str, Any]]:
  """Returns the lines of requests.jsonl."""
  return [
    {**vars(request), **vars(score)} for request, score in zip(requests, scores)
  ]


def _by_task(
  questions: Sequence[questions_lib.Question], scores: Sequence[Score]
) -> dict[str, tuple[list[questions_lib.Question], list[Sequence[Score]]]]:
  """Returns the questions of each task and the scores of their requests."""
  tasks: dict[str, tuple[list, list]] = {}
  start = 0
  for question in questions:
    stop = start + len(question.pairs())
    members, answers = tasks.setdefault(question.task.name, ([], []))
    members.append(question)
    answers.append(scores[start:stop])
    start = stop
  return tasks


def _predictions(
  questions: Sequence[questions_lib.Question],
  answers: Sequence[Sequence[Score]],
) -> list[dict[str, Any]]:
  return [
    {
      'task': question.task.name,
      'doc_id': question.doc_id,
      'metric': metric,
      'pred': metrics_lib.predict(question, scores, metric),
      'gold': question.example.gold,
    }
    for question, scores in zip(questions, answers)
    for metric in question.task.metrics
    if question.example.gold is not None
  ]


def _describe(path: pathlib.Path) -> dict[str, str]:
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return {
    'path': str(path),
    'sha256': digest,
    'origin': benchmarks.origin(path),
  }


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
  for row in rows:
    yield (json.dumps(row, ensure_ascii=False) + '\n').encode()
