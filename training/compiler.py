"""Options of XLA that a training step is compiled with, by kind of device.

Only what makers document and only between several devices: collectives run
beside computation. docs/scaling.md says where each is from. Each option is
tried on an empty program first, since they come and go with versions of XLA.
"""

import functools
import os

from absl import logging
import jax
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_SCHEDULER = 'xla_gpu_enable_latency_hiding_scheduler'
OPTIONS: dict[str, dict[str, bool]] = {
  'gpu': {_SCHEDULER: True},
  'tpu': {
    'xla_enable_async_all_gather': True,
    'xla_tpu_enable_async_collective_fusion': True,
    'xla_tpu_enable_async_collective_fusion_fuse_all_gather': True,
    'xla_tpu_enable_async_collective_fusion_multiple_steps': True,
    'xla_tpu_overlap_compute_collective_tc': True,
  },
}


def options(mesh: Mesh, remat: str) -> dict[str, str | bool]:
  """Returns the options for a mesh; what the user set in XLA_FLAGS stays.

  Args:
    mesh: what is compiled for.
    remat: policy of models/remat.py. With 'full', the scheduler that hides
      latency on GPUs would take the memory that it saves (docs/scaling.md).
  """
  device = mesh.devices.flat[0]
  if mesh.size == 1 or device.platform not in OPTIONS:
    return {}
  own = os.environ.get('XLA_FLAGS', '') + os.environ.get('LIBTPU_INIT_ARGS', '')
  wanted = dict(OPTIONS[device.platform])
  if _SCHEDULER in wanted and remat == 'full':
    # Not left out: XLA's own default is to have it.
    wanted[_SCHEDULER] = False
  return {
    name: value
    for name, value in wanted.items()
    if f'--{name}' not in own and accepted(name, value, mesh)
  }


@functools.cache
def accepted(name: str, value: bool, mesh: Mesh) -> bool:
  """Returns whether this version of XLA has an option; logs it if not."""
  shape = jax.ShapeDtypeStruct(
    (), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec())
  )
  try:
    with jax.set_mesh(mesh):
      lowered = jax.jit(lambda x: x).lower(shape)
    lowered.compile(compiler_options={name: value})
  except jax.errors.JaxRuntimeError as error:
    logging.warning('XLA option left out: %s', str(error).splitlines()[0])
    return False
  return True
