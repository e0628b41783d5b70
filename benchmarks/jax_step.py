"""Times training steps of this project.

    python -m benchmarks.jax_step SHAPE

The counterpart of pytorch_baseline.py; SHAPE also has `profile`: whether to
list the longest operations and their seconds in a step.
"""

import collections
import functools
import gzip
import json
import os
import pathlib
import re
import resource
import sys
import tempfile
import time
from typing import Any

if __name__ == '__main__' and hasattr(os, 'sched_setaffinity'):
  from steepest.training import processes

  # Set before JAX starts, as in every run.
  if json.loads(sys.argv[1])['one_core']:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  processes.keep_memory()

import jax
from ml_collections import ConfigDict
import numpy as np

from steepest.experiments import base
from steepest.models import config as model_config
from steepest.models.config import ModelConfig
from steepest.optimizers import build
from steepest.training import chips, flops, mesh, run, state, step

_PROFILED = 5
_LISTED = 15


def configure(shape: dict[str, Any]) -> tuple[ConfigDict, ModelConfig]:
  """Returns a run's configuration on one device, and its model."""
  config = base.get_config().unlock()
  base.set_model(config, shape['model'])
  base.set_optimizer(config, shape['optimizer'])
  config.model.update(
    num_layers=shape['layers'],
    width=shape['width'],
    num_heads=shape['heads'],
    mlp_dim=shape['mlp'],
    vocab_size=shape['vocab'],
    context=shape['context'],
    bias=False,
    remat=shape['remat'],
  )
  config.optimizer.hessian_subset = shape['hessian_subset']
  config.parametrization.kind = 'sp'
  config.batch_size = shape['batch']
  config.mesh.data = 1
  config.dtype.compute = shape['dtype']
  model = model_config.resolve(config.model, shape['vocab'], config.dtype)
  return config, model


class Trainer:
  """Compiled step, state and one batch of random tokens."""

  def __init__(self, shape: dict[str, Any]):
    config, model = configure(shape)
    self.setup = run.make_setup(config, model)
    rng = np.random.default_rng(0)
    size = shape['batch'], shape['context'] + 1
    tokens = rng.integers(0, shape['vocab'], size, dtype=np.int32)
    put = functools.partial(mesh.replicate, self.setup.mesh)
    self.batch = mesh.put_batch(
      self.setup.mesh,
      {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]},
      shape['batch'],
    )
    self.hypers = put(
      build.hyperparameters(config.optimizer, config.schedule, 1000)
    )
    self.seed = put(np.uint32(0))
    self.state = state.init(self.setup, 0)
    # Without and with the measurements of a logged step.
    self.flags = put((np.bool_(False), np.bool_(True)))
    self._steps = 0
    self._log_every = config.log_every
    self._clock = time.perf_counter
    if shape['one_core']:
      self._clock = time.process_time

  def step(self) -> None:
    """One training step; some also measure what is logged, as in a run."""
    measure = self._steps % self._log_every == 0
    self._steps += 1
    compiled = step.compile_step(self.setup, self.hypers)
    self.state, _ = compiled(
      self.state, self.batch, self.hypers, self.seed, self.flags[measure]
    )

  def seconds(self, count: int) -> float:
    """Returns the seconds of `count` steps until all work is done."""
    jax.block_until_ready(self.state)
    start = self._clock()
    for _ in range(count):
      self.step()
    jax.block_until_ready(self.state)
    return self._clock() - start

  def memory(self) -> int:
    """Returns the peak bytes in use so far."""
    statistics = jax.devices()[0].memory_stats()
    if statistics:
      return statistics['peak_bytes_in_use']
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

  def profile(self) -> list[tuple[str, float]]:
    """Returns the longest operations of a step, with their seconds."""
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        self.seconds(_PROFILED)
      (path,) = pathlib.Path(folder).rglob('*.trace.json.gz')
      with gzip.open(path, 'rt', encoding='utf-8') as f:
        events = json.load(f)['traceEvents']
    total: collections.Counter[str] = collections.Counter()
    for event in events:
      if 'hlo_op' in event.get('args', {}):
        # Instances of an operation differ by a number at the end.
        name = re.sub(r'(\.\d+|\.clone|\.remat)+$', '', event['name'])
        total[name] += event['dur'] / 1e6 / _PROFILED
    return total.most_common(_LISTED)


def main() -> None:
  """Prints what was measured as a line of JSON."""
  shape = json.loads(sys.argv[1])
  trainer = Trainer(shape)
  first = trainer.seconds(1)
  trainer.seconds(2)
  seconds = trainer.seconds(shape['steps'])
  params = trainer.setup.shapes.params
  device = jax.devices()[0]
  values = {
    'name': f'JAX {jax.__version__} on {device.device_kind}',
    'compile_seconds': first,
    'step_seconds': seconds / shape['steps'],
    'bytes': trainer.memory(),
    'parameters': flops.count(params)['parameters'],
    'flops_per_token': flops.per_token(params, trainer.setup.model),
    'peak_flops': chips.peak(device),
    'operations': trainer.profile() if shape['profile'] else [],
  }
  print(json.dumps(values), flush=True)


if __name__ == '__main__':
  main()
