"""Compiles a run's step without running it, for chips that need not be here.

Libtpu compiles for a topology of TPUs by its name, the CUDA plugin of JAX for
GPUs by a description of one (`jax.experimental.topologies`).
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import re
import time

import jax
from jax import numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from steepest.models import config as model_config
from steepest.optimizers import build
from steepest.training import mesh as mesh_lib, run as assemble
from steepest.training.chips import CHIPS, Chip
from steepest.tuning import plans

# Slices by number of chips, as Cloud TPU names them; fewer are part of the
# smallest.
_TOPOLOGIES = {
  'v5e': ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
  'v5p': ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8'),
}
_TOPOLOGIES['v6e'] = _TOPOLOGIES['v5e']
# JAX's plugin for GPUs checks versions of CUDA's libraries. Some tell none
# where there is no GPU, and it would stay out.
_UNCHECKED = 'JAX_SKIP_CUDA_CONSTRAINTS_CHECK'
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
class Gpu:
  """A GPU as XLA's compiler asks for it.

  Attributes:
    name: as its driver gives it.
    capability: CUDA compute capability.
    extension: whether code for this capability alone is made, as in sm_90a.
    cores: streaming multiprocessors.
    fpus: of a multiprocessor.
    shared: bytes of shared memory of a multiprocessor.
    cache: bytes of the second level.
    clock: GHz.
    bandwidth: of the memory, bytes/s.
    memory: bytes.
  """

  name: str
  capability: tuple[int, int]
  extension: bool
  cores: int
  fpus: int
  shared: int
  cache: int
  clock: float
  bandwidth: int
  memory: int


# OpenXLA's xla/backends/gpu/target_config/specs: h100_sxm, h200, a100_sxm_80,
# which it read from such devices.
GPUS = {
  'h100': Gpu(
    name='NVIDIA H100 80GB HBM3',
    capability=(9, 0),
    extension=True,
    cores=132,
    fpus=128,
    shared=233_472,
    cache=52_428_800,
    clock=1.98,
    bandwidth=3_352_320_000_000,
    memory=84_942_979_072,
  ),
  'h200': Gpu(
    name='NVIDIA H200 141GB HBM3e',
    capability=(9, 0),
    extension=True,
    cores=132,
    fpus=128,
    shared=233_472,
    cache=52_428_800,
    clock=1.98,
    bandwidth=4_800_000_000_000,
    memory=151_397_597_184,
  ),
  'a100': Gpu(
    name='NVIDIA A100-SXM4-80GB',
    capability=(8, 0),
    extension=False,
    cores=108,
    fpus=64,
    shared=167_936,
    cache=41_943_040,
    clock=1.41,
    bandwidth=2_039_040_000_000,
    memory=85_100_068_864,
  ),
}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of one device.

  Attributes:
    arguments: bytes of parameters, optimizer state and batch.
    temporaries: bytes of all else, results that replace no argument included.
    seconds: of compilation.
    text: the program, as XLA's instructions.
  """

  arguments: int
  temporaries: int
  seconds: float
  text: str


def host() -> Chip:
  """Returns this machine's CPU as a chip: its memory; times mean nothing."""
  pages, size = os.sysconf('SC_PHYS_PAGES'), os.sysconf('SC_PAGE_SIZE')
  return Chip(1.0, pages * size, 1.0, 1.0, 1.0, 1, 1, '')


def devices(chip: str, count: int) -> list[jax.Device]:
  """Returns `count` devices to compile for, of this machine if it has them.

  Raises:
    ValueError: there are none, or too few.
  """
  if chip in GPUS:
    # Before JAX looks for devices, and with them for its plugins.
    os.environ.setdefault(_UNCHECKED, '1')
  found = [d for d in jax.devices() if _KINDS[chip] in d.device_kind]
  if found:
    if len(found) < count:
      raise ValueError(
        f'--devices={count}: this machine has {len(found)} {chip}'
      )
    return found[:count]
  if chip in GPUS:
    return _gpus(chip, count)
  if chip not in _TOPOLOGIES:
    raise ValueError(f'--compile --chip={chip}: JAX has none on this machine')
  slices = {
    int(np.prod([int(n) for n in name.split('x')])): name
    for name in _TOPOLOGIES[chip]
  }
  large = [size for size in slices if size >= count]
  if not large:
    raise ValueError(f'--devices={count}: {chip} is known up to {max(slices)}')
  name = f'{chip}:{slices[min(large)]}'
  # There is no metadata server to ask.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  return _topology(name, 'tpu', name, {})[:count]


def _gpus(chip: str, count: int) -> list[jax.Device]:
  host = CHIPS[chip].host
  # Groups that fast links join, machines of a group, GPUs of a machine.
  shape = f'{-(-count // host)}x1x{min(count, host)}'
  try:
    target = _target(GPUS[chip])
  except (AttributeError, ImportError, RuntimeError) as error:
    raise _no_compiler(chip, 'cuda', error) from error
  options = {'topology': shape, 'target_config': target}
  return _topology('', 'cuda', chip, options)[:count]


def _topology(
  name: str, platform: str, wanted: str, options: dict[str, str]
) -> list[jax.Device]:
  from jax.experimental import topologies

  try:
    found = topologies.get_topology_desc(name, platform, **options)
    return list(found.devices)
  except Exception as error:
    raise _no_compiler(wanted, platform, error) from error


def _no_compiler(wanted: str, extra: str, error: Exception) -> ValueError:
  return ValueError(
    f"no compiler for {wanted}: install it with pip install 'steepest[{extra}]'"
    f' ({str(error).splitlines()[0][:200]})'
  )


def _target(gpu: Gpu) -> str:
  """Returns XLA's description of a GPU beside the libraries that are here.

  Raises:
    AttributeError: JAX tells their versions no more, or in another way.
    ImportError: the same.
    RuntimeError: they are not here.
  """
  # Private, and all there is: which of cuDNN's kernels the compiled program
  # holds depends on its version.
  from jax._src.lib import cuda_versions

  if cuda_versions is None:
    raise RuntimeError('the CUDA plugin of JAX is not installed')
  cudnn = cuda_versions.cudnn_get_version()
  cuda = cuda_versions.cuda_runtime_get_version()
  major, minor = gpu.capability
  extension = 'ACCELERATED_FEATURES' if gpu.extension else 'NONE'
  # The same on all GPUs from the A100 to the H200.
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared}
  shared_memory_per_block_optin: {gpu.shared - 1024}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{
    major: {major} minor: {minor} feature_extension: {extension}
  }}
}}
platform_name: "CUDA"
dnn_version_info {{
  major: {cudnn // 10_000}
  minor: {cudnn // 100 % 100}
  patch: {cudnn % 100}
}}
runtime_version {{ major: {cuda // 1000} minor: {cuda % 1000 // 10} patch: 0 }}
device_description_str: "{gpu.name}"
"""


@contextlib.contextmanager
def capability(device: jax.Device) -> Iterator[None]:
  """Lets JAX's cuDNN attention be compiled for a GPU that is not here.

  JAX asks the first GPU of its own what that attention may do, and there may
  be none. The two functions that ask are private: there is no other way.

  Raises:
    ValueError: JAX has them no more.
  """
  if device.platform != 'gpu' or device in jax.devices():
    yield
    return
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  numbers = lambda text: tuple(int(n) for n in text.split('.'))
  own = numbers(device.compute_capability)
  answers = {
    'check_compute_capability': lambda asked: own >= numbers(asked),
    'is_cuda_compute_capability_equal': lambda asked: own == numbers(asked),
  }
  kept = {name: getattr(cudnn, name, None) for name in answers}
  if None in kept.values():
    raise ValueError(
      f'JAX {jax.__version__} asks for the compute capability in another way '
      'than this project knows: compile where there is such a GPU'
    )
  try:
    for name, answer in answers.items():
      setattr(cudnn, name, answer)
    yield
  finally:
    for name, function in kept.items():
      setattr(cudnn, name, function)


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
    with capability(devices[0]):
      step = program.compile_step(
        program.state_shapes,
        {'inputs': shape, 'targets': shape},
        args,
        np.uint32(0),  # type: ignore[arg-type]
      )
  except jax.errors.JaxRuntimeError as error:
    # Where Python takes part in compiling, its traceback comes first.
    said = re.search(r'^\w*Error: .*', str(error), re.MULTILINE)
    line = said[0] if said else str(error).splitlines()[0]
    raise ValueError(f'the compiler says: {line[:300]}') from error
  seconds = time.perf_counter() - start
  m = step.memory_analysis()
  return Compiled(
    m.argument_size_in_bytes,
    m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes,
    seconds,
    step.as_text(),
  )
