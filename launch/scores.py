"""Benchmark scores of a run, on its mesh, while it trains and at its end."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict

from steepest.data import benchmarks, tokenizers
from steepest.eval import evaluation, likelihoods, questions, tasks as tasks_lib
from steepest.training.program import Program


def evaluator(
  config: ConfigDict,
  program: Program,
  tokenizer_dir: str | None,
  workdir: pathlib.Path,
) -> Callable[[Any, int, bool], dict[str, float]]:
  """Returns the training loop's callback for `eval_tasks`.

  It returns every group and every task outside a group as TASK/METRIC, and
  after the last step writes WORKDIR/eval/ as launch.evaluate does.

  Raises:
    FileNotFoundError: documents are missing.
    ValueError: the data have no tokenizer, or a task is unknown.
  """
  if tokenizer_dir is None:
    raise ValueError(
      f'eval_tasks={config.eval_tasks} needs a tokenizer, and '
      f'{config.data.source} has none: use shards or eval_tasks=""'
    )
  wanted = questions.stems(tasks_lib.select(config.eval_tasks).tasks)
  # Runs of one tokenizer share the tokenized questions.
  suite = _suite(
    (epath.Path(tokenizer_dir) / 'tokenizer.json').read_text('utf-8'),
    tokenizer_dir,
    config.eval_tasks,
    str(benchmarks.locate(config.eval_tasks_data, wanted)),
    config.eval_tasks_limit,
  )
  suite.check(program.model.context)

  def evaluate(params: Any, done: int, last: bool) -> dict[str, float]:
    results = evaluation.run(
      _score_fn(program), params, suite, program.model.context
    )
    if last and jax.process_index() == 0:
      info = {'model': f'ckpt:{workdir}', 'steps': done, **results.info}
      dataclasses.replace(results, info=info).write(workdir / 'eval')
    grouped = {t for names in suite.selection.groups.values() for t in names}
    return {
      f'{task}/{metric}': value
      for task, values in results.metrics.items()
      if task not in grouped
      for metric, value in values.items()
      if value is not None
    }

  return evaluate


_tokenized: dict[tuple[str, str, str, int], evaluation.Suite] = {}


def _suite(
  definition: str, directory: str, tasks: str, data: str, limit: int
) -> evaluation.Suite:
  """Returns the questions, tokenized once for all runs of a tokenizer."""
  key = definition, tasks, data, limit
  if key not in _tokenized:
    tokenizer = tokenizers.load(f'hf:{directory}')
    _tokenized[key] = evaluation.prepare(tokenizer, tasks, data, limit)
  return _tokenized[key]


@functools.lru_cache(maxsize=1)
def _score_fn(program: Program) -> likelihoods.ScoreFn:
  """Scores compile once a program."""
  return likelihoods.make_score_fn(program.features, program.mesh)
