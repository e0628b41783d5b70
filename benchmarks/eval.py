"""Measures requests and documents scored per second, task by task.

    python benchmarks/eval.py --limit=50

Scores the first questions of ARC, HellaSwag and MMLU with a GPT-2 of 124M
random parameters, in float32, on this machine's device. Times include
tokenization, but neither compilation nor loading.
"""

import pathlib
import tempfile
import time

from absl import app, flags
import jax

from steepest.data import benchmarks, tokenizers
from steepest.eval import evaluation, likelihoods
from steepest.experiments import base
from steepest.models import (
  config as model_config,
  huggingface_export,
  parametrization,
)
from steepest.training import loading, run as run_lib, state

_LIMIT = flags.DEFINE_integer('limit', 50, 'Questions of each task; 0: all.')
_TASKS = flags.DEFINE_list(
  'tasks', 'arc_easy,arc_challenge,hellaswag,mmlu', 'What to score.'
)
_DATA = flags.DEFINE_string('data', '', 'As of launch.evaluate.')


def main(_: list[str]) -> None:
  """Prints a line for each task and one for all."""
  jax.config.update('jax_default_matmul_precision', 'highest')
  with tempfile.TemporaryDirectory() as folder:
    _write_model(pathlib.Path(folder))
    model = loading.load_model(f'hf:{folder}')
  score_fn = likelihoods.ScoreFn(model.features_fn)
  data = benchmarks.locate(_DATA.value)
  prepare = lambda tasks: evaluation.prepare(
    model.tokenizer, tasks, data, _LIMIT.value
  )
  print(f'jax {jax.__version__}, {jax.devices()[0].device_kind}')
  start = time.perf_counter()
  suite = prepare(','.join(_TASKS.value))
  score_fn(model.params, suite.requests, model.max_length)
  spent = time.perf_counter() - start
  print(f'first pass, with {score_fn.compilations} compilations: {spent:.1f} s')
  total = [0, 0, 0.0, 0.0]
  for task in _TASKS.value:
    start, cores = time.perf_counter(), time.process_time()
    suite = prepare(task)
    score_fn(model.params, suite.requests, model.max_length)
    numbers = [
      *(len(suite.questions), len(suite.requests)),
      *(time.perf_counter() - start, time.process_time() - cores),
    ]
    _print(task, *numbers)
    total = [a + b for a, b in zip(total, numbers)]
  _print('all', *total)


def _write_model(directory: pathlib.Path) -> None:
  tokenizer = tokenizers.load('gpt2')
  config = base.get_config()
  config.model.update(name='gpt2', num_layers=12, width=768, num_heads=12)
  config.model.context = 1024
  config.dtype.compute = 'float32'
  model = model_config.resolve(config.model, tokenizer.vocab_size, config.dtype)
  setup = run_lib.make_setup(config, model)
  tokenizer.save(directory)
  huggingface_export.write(
    directory,
    state.init(setup, 0).params,
    parametrization.resolve(config.parametrization, model),
    tokenizer.bos_id,
    tokenizer.eos_id,
  )


def _print(
  name: str, documents: float, requests: float, seconds: float, cores: float
) -> None:
  print(
    f'{name}: {documents:.0f} documents, {requests:.0f} requests in '
    f'{seconds:.1f} s, {requests / seconds:.2f} requests/s, '
    f'{documents / seconds:.2f} documents/s; {cores:.1f} s of cores',
    flush=True,
  )


if __name__ == '__main__':
  app.run(main)
