"""Compiles a run's step without running it, for chips here or for TPUs.

TPUs need not be here: libtpu compiles for a topology by its name (JAX's
`jax.experimental.topologies`).
"""

import dataclasses
import os
import time

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from steepest.launch import assemble
from steepest.launch import plans
from steepest.models import config as model_config
from steepest.optimizers import build
from steepest.training import mesh as mesh_lib
from steepest.training.chips import Chip

# Slices by number of chips, as Cloud TPU names them; fewer are part of the
# smallest.
_TOPOLOGIES = {
  'v5e': ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
  'v5p': ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8'),
}
_TOPOLOGIES['v6e'] = _TOPOLOGIES['v5e']
_KINDS = {
  'h100': 'H100',
  'h200': 'H200',
  'a100': 'A100',
  'v5e': 'TPU v5 lite',
  'v5p': 'TPU v5',
  'v6e': 'TPU v6 lite',
  'cpu': 'cpu',
}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of one device.

  Attributes:
    arguments: bytes of parameters, optimizer state and batch.
    temporaries: bytes of all else, results that replace no argument included.
    seconds: of compilation.
  """

  arguments: int
  temporaries: int
  seconds: float


def host() -> Chip:
  """Returns this machine's CPU as a chip: its memory; times mean nothing."""
  pages, size = os.sysconf('SC_PHYS_PAGES'), os.sysconf('SC_PAGE_SIZE')
  return Chip(1.0, pages * size, 1.0, 1.0, 1.0, 1, 1, '')


def devices(chip: str, count: int) -> list[jax.Device]:
  """Returns `count` devices to compile for, of this machine if it has them.

  Raises:
    ValueError: there are none, or too few.
  """
  found = [d for d in jax.devices() if _KINDS[chip] in d.device_kind]
  if found:
    if len(found) < count:
      raise ValueError(
        f'--devices={count}: this machine has {len(found)} {chip}'
      )
    return found[:count]
  if chip not in _TOPOLOGIES:
    raise ValueError(
      f'--compile --chip={chip}: this machine has none; compile where there is '
      f'one, or for {", ".join(_TOPOLOGIES)} with libtpu'
    )
  slices = {
    int(np.prod([int(n) for n in name.split('x')])): name
    for name in _TOPOLOGIES[chip]
  }
  large = [size for size in slices if size >= count]
  if not large:
    raise ValueError(f'--devices={count}: {chip} is known up to {max(slices)}')
  return _topology(f'{chip}:{slices[min(large)]}')[:count]


def _topology(name: str) -> list[jax.Device]:
  from jax.experimental import topologies

  # There is no metadata server to ask.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  try:
    return list(topologies.get_topology_desc(name, 'tpu').devices)
  except Exception as error:
    raise ValueError(
      f"no compiler for {name}: install it with pip install 'steepest[tpu]' "
      f'({str(error).splitlines()[0][:200]})'
    ) from error


def compile_step(config: ConfigDict, devices: list[jax.Device]) -> Compiled:
  """Compiles the training step of a run for `devices`.

  Raises:
    ValueError: the configuration does not fit together or the step does not
      fit the devices' memory.
  """
  vocab = plans.vocab_size(config)
  model = model_config.resolve(config.model, vocab, config.dtype)
  program = assemble.make_program(config, model, devices)
  tokens, _ = mesh_lib.batch_shardings(program.mesh)
  shape = jax.ShapeDtypeStruct(
    (config.batch_size, model.context), jnp.int32, sharding=tokens
  )
  args = build.arguments(config.optimizer, config.schedule, config.steps)
  start = time.perf_counter()
  try:
    step = program.compile_step(
      program.state_shapes,
      {'inputs': shape, 'targets': shape},
      args,
      np.uint32(0),  # type: ignore[arg-type]
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f'the compiler says: {str(error).splitlines()[0][:300]}'
    ) from error
  m = step.memory_analysis()
  return Compiled(
    m.argument_size_in_bytes,
    m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes,
    time.perf_counter() - start,
  )
