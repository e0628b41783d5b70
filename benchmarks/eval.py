"""Requests and documents per second, against transformers row by row.

    python benchmarks/eval.py --limit=50 --baseline_python=PYTHON

Scores the first questions of ARC, HellaSwag and MMLU with a GPT-2 of 124M
random parameters, in float32 on the same device, task after task: first here,
then with `transformers` on a row for every request (eval_baseline.py). Both are
warm: neither compilation nor loading counts, tokenisation does.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags
import jax
import numpy as np

from steepest.data import benchmarks, tokenizers
from steepest.eval import evaluation, likelihoods
from steepest.experiments import base
from steepest.models import (
  config as model_config,
  huggingface_export,
  parametrization,
)
from steepest.training import loading, run as assemble

_LIMIT = flags.DEFINE_integer('limit', 50, 'Questions of each task; 0: all.')
_TASKS = flags.DEFINE_list(
  'tasks', 'arc_easy,arc_challenge,hellaswag,mmlu', 'What to score.'
)
_DATA = flags.DEFINE_string('data', '', 'As of launch.evaluate.')
_PYTHON = flags.DEFINE_string(
  'baseline_python', sys.executable, 'One with torch and transformers.'
)
_BATCH_SIZE = flags.DEFINE_integer(
  'baseline_batch_size', 8, 'Rows of a batch of the baseline.'
)


def main(_: list[str]) -> None:
  """Prints a line for each task and one for all."""
  jax.config.update('jax_default_matmul_precision', 'highest')
  with tempfile.TemporaryDirectory() as folder:
    directory = pathlib.Path(folder)
    _write_model(directory)
    command = [_PYTHON.value, 'benchmarks/eval_baseline.py', folder]
    with subprocess.Popen(
      [*command, str(_BATCH_SIZE.value)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    ) as baseline:
      _compare(directory, baseline)
      assert baseline.stdin is not None
      baseline.stdin.close()


def _write_model(directory: pathlib.Path) -> None:
  tokenizer = tokenizers.load('gpt2')
  config = base.get_config()
  config.model.update(name='gpt2', num_layers=12, width=768, num_heads=12)
  config.model.context = 1024
  config.dtype.compute = 'float32'
  model = model_config.resolve(config.model, tokenizer.vocab_size, config.dtype)
  rules = parametrization.resolve(config.parametrization, model)
  program = assemble.make_program(config, model)
  tokenizer.save(directory)
  huggingface_export.write(
    directory,
    program.init(0).params,
    rules,
    tokenizer.bos_id,
    tokenizer.eos_id,
  )


def _compare(directory: pathlib.Path, baseline: subprocess.Popen) -> None:
  model = loading.load_model(f'hf:{directory}')
  score_fn = likelihoods.ScoreFn(model.features_fn)
  data = benchmarks.locate(_DATA.value)
  assert baseline.stdout is not None
  print(f'jax {jax.__version__}, {jax.devices()[0].device_kind}; ', end='')
  print(baseline.stdout.readline().strip())
  suite = evaluation.prepare(
    model.tokenizer, ','.join(_TASKS.value), data, _LIMIT.value
  )
  start = time.perf_counter()
  score_fn(model.params, suite.requests, model.max_length)
  spent = time.perf_counter() - start
  print(f'first pass, with {score_fn.compilations} compilations: {spent:.1f} s')
  _ask(baseline, directory, [('Warm', ' up')])
  sums = np.zeros(6)
  for task in _TASKS.value:
    start = time.perf_counter(), time.process_time()
    suite = evaluation.prepare(model.tokenizer, task, data, _LIMIT.value)
    scores = score_fn(model.params, suite.requests, model.max_length)
    ours = time.perf_counter() - start[0], time.process_time() - start[1]
    pairs = [(r.context, r.continuation) for r in suite.requests]
    theirs, logps = _ask(baseline, directory, pairs)
    numbers = len(suite.questions), len(pairs), *ours, *theirs
    mine = [score.loglikelihood for score in scores]
    difference = np.abs(np.subtract(mine, logps)).max()
    _print(task, *numbers)
    print(f'  log-likelihoods differ by {difference:.1e} at most')
    sums += numbers
  _print('all', *sums)


def _ask(
  baseline: subprocess.Popen,
  directory: pathlib.Path,
  pairs: list[tuple[str, str]],
) -> tuple[list[float], list[float]]:
  """Returns the baseline's seconds, by clock and cores, and its scores."""
  assert baseline.stdin is not None and baseline.stdout is not None
  source, target = directory / 'pairs.json', directory / 'scores.json'
  source.write_text(json.dumps(pairs), 'utf-8')
  baseline.stdin.write(json.dumps([str(source), str(target)]) + '\n')
  baseline.stdin.flush()
  seconds = [float(x) for x in baseline.stdout.readline().split()]
  return seconds, json.loads(target.read_text('utf-8'))


def _print(
  name: str,
  documents: float,
  requests: float,
  ours: float,
  ours_cores: float,
  theirs: float,
  theirs_cores: float,
) -> None:
  print(f'{name}: {documents:.0f} documents, {requests:.0f} requests')
  for who, seconds, of_cores in (
    ('steepest', ours, ours_cores),
    ('transformers', theirs, theirs_cores),
  ):
    rates = requests / seconds, documents / seconds
    print(
      f'  {who}: {seconds:.1f} s, {rates[0]:.2f} requests/s, '
      f'{rates[1]:.2f} documents/s; {of_cores:.1f} s of cores'
    )
  ratios = theirs / ours, theirs_cores / ours_cores
  print(
    f'  {ratios[0]:.2f} times as fast by the clock, {ratios[1]:.2f} by cores',
    flush=True,
  )


if __name__ == '__main__':
  app.run(main)
