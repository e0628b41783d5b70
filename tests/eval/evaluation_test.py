"""Benchmarks on the training mesh: same scores, one compilation, no copy."""

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from steepest.data import tokenizers
from steepest.eval import evaluation, likelihoods
from steepest.experiments import tiny
from steepest.models import config as model_config
from steepest.training import run, state

_MESHES = (
  ('gpt2', {'data': 2, 'fsdp': 2, 'tensor': 2}),
  ('llama', {'tensor': 2, 'sequence': 2}),
  pytest.param('llama', {'data': 8}, marks=pytest.mark.slow),
)


def _setup(name: str, mesh: dict[str, int], compute: str = 'float32') -> Any:
  config = tiny.get_config(f'{name},adamw').unlock()
  config.model.update(vocab_size=320, width=32, num_heads=4)
  config.mesh.update({'data': 1, 'fsdp': 1, 'tensor': 1, 'sequence': 1} | mesh)
  config.dtype.compute = compute
  config.batch_size = 8
  model = model_config.resolve(config.model, 320, config.dtype)
  return run.make_setup(config, model)


def _scores(data: pathlib.Path, setup: Any) -> list[likelihoods.Score]:
  suite = evaluation.prepare(
    tokenizers.load(f'hf:{data}'), 'arc_easy,mmlu', data
  )
  score_fn = likelihoods.ScoreFn(setup.features, setup.mesh)
  return score_fn(state.init(setup, 0).params, suite.requests, 64)


@pytest.fixture(scope='module')
def alone(scored_documents):
  """Scores of one device."""
  return functools.cache(
    lambda name: _scores(scored_documents, _setup(name, {}))
  )


@pytest.mark.parametrize('name, mesh', _MESHES, ids=str)
def test_any_mesh_scores_the_same(scored_documents, alone, name, mesh):
  found = _scores(scored_documents, _setup(name, mesh))
  np.testing.assert_allclose(
    [score.loglikelihood for score in found],
    [score.loglikelihood for score in alone(name)],
    atol=2e-4,
  )
  same = [a.is_greedy == b.is_greedy for a, b in zip(found, alone(name))]
  assert all(same)


_PROCESS = """
import json, pathlib, sys
import jax
index, port, test, data = sys.argv[1:]
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{port}', 2, int(index))
import importlib.util
spec = importlib.util.spec_from_file_location('scores_test', test)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
mesh = {'data': 2, 'fsdp': 2, 'tensor': 2}
found = module._scores(pathlib.Path(data), module._setup('gpt2', mesh))
print(json.dumps([[s.loglikelihood, s.is_greedy] for s in found]))
"""


@pytest.mark.slow
def test_processes_score_the_same(scored_documents, alone):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = str(free.getsockname()[1])
  flags = '--xla_force_host_platform_device_count=4'
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', _PROCESS, index, port, __file__, scored_documents],
      env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
      stdout=subprocess.PIPE,
      text=True,
    )
    for index in '01'
  ]
  lines = [p.communicate(timeout=600)[0].splitlines()[-1] for p in processes]
  assert lines[0] == lines[1]
  found = json.loads(lines[0])
  np.testing.assert_allclose(
    [score[0] for score in found],
    [score.loglikelihood for score in alone('gpt2')],
    atol=2e-4,
  )


def test_half_precision_sums_in_full(scored_documents, alone):
  setup = _setup('gpt2', {}, 'bfloat16')
  found = _scores(scored_documents, setup)
  np.testing.assert_allclose(
    [score.loglikelihood for score in found],
    [score.loglikelihood for score in alone('gpt2')],
    rtol=5e-3,
  )
  # Values of bfloat16 have 8 significant bits; sums of float32 have more.
  exact = [np.float32(score.loglikelihood).view(np.uint32) for score in found]
  assert any(bits & 0xFFFF for bits in exact)


def test_evaluations_compile_once_and_copy_nothing(scored_documents, tmp_path):
  data = str(scored_documents)
  setup = _setup('gpt2', {'data': 2, 'fsdp': 2, 'tensor': 2})
  make_evaluate = evaluation.evaluator('arc_easy:7,mmlu', data, 5)
  assert make_evaluate is not None
  evaluate = make_evaluate(
    setup.features, setup.mesh, setup.model.context, data, tmp_path
  )
  score_fn = evaluation._score_fn(setup.features, setup.mesh)
  first, second = (state.init(setup, seed).params for seed in (0, 1))
  values = evaluate(first, 1, False)
  compilations = score_fn.compilations
  assert 0 < compilations <= 8
  before = sum(array.nbytes for array in jax.live_arrays())
  again = evaluate(second, 2, True)
  assert score_fn.compilations == compilations
  assert sum(array.nbytes for array in jax.live_arrays()) <= before
  assert values.keys() == again.keys() and values != again
  results = json.loads((tmp_path / 'eval' / 'results.json').read_text())
  assert results['metrics']['arc_easy']['n'] == 7
  assert results['metrics']['mmlu']['n'] == 5
  # The parameters are still there to train on.
  jax.block_until_ready(second)
