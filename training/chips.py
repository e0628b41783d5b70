"""Accelerators: what their makers say of them, and the MFU measured on them.

Peaks and memories are those of the data sheets "H100 Tensor Core GPU", "H200
Tensor Core GPU" and "A100 80GB" (SXM forms, dense rates) and of the pages "TPU
v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU documentation, which also have
the slices. Descriptions for XLA are those of OpenXLA,
xla/backends/gpu/target_config/specs, read there from such devices.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import jax

_GIB = 2**30
# Slices as Google Cloud has them: chips along each dimension.
_FLAT = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8'),
  *('8x8x8', '8x8x16', '8x16x16'),
)


@dataclasses.dataclass(frozen=True)
class Mfu:
  """A share of the peak that training reached.

  Attributes:
    parameters: of the model.
    share: by the convention of training/flops.py, or one close to it.
    source: who measured it, on how many chips.
  """

  parameters: float
  share: float
  source: str

  def __str__(self) -> str:
    size = f'{self.parameters / 1e9:.3g} G'
    return f'{self.share:.1%}, measured with {size} parameters ({self.source})'


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of accelerator.

  Attributes:
    kinds: parts of the names that JAX has for it.
    peak: dense bfloat16 FLOP/s.
    memory: bytes.
    host: chips of one machine, as providers rent them.
    attention: the kernel that keeps no L×L scores for the backward pass:
      'cudnn', 'splash' or ''; models/attention.py says when it serves.
    measured: MFU of models of several sizes.
    slices: topologies of TPUs, from the smallest.
    xla: of a GPU, fields of XLA's GpuDeviceInfoProto, its `name`, compute
      `capability` and feature `extension`.
  """

  kinds: tuple[str, ...]
  peak: float
  memory: int
  host: int
  attention: str
  measured: tuple[Mfu, ...] = ()
  slices: tuple[str, ...] = ()
  xla: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def is_gpu(self) -> bool:
    return self.attention == 'cudnn'

  def mfu(self, parameters: float) -> Mfu | None:
    """Returns the MFU measured on the model nearest in size."""
    distance = lambda m: abs(math.log(m.parameters / parameters))
    return min(self.measured, key=distance, default=None)


# Of every GPU from the A100 to the H200.
_GPU = {
  'threads_per_block_limit': 1024,
  'threads_per_warp': 32,
  'shared_memory_per_block': 49_152,
  'threads_per_core_limit': 2048,
  'block_dim_limit_x': 2_147_483_647,
  'block_dim_limit_y': 65_535,
  'block_dim_limit_z': 65_535,
  'registers_per_core_limit': 65_536,
  'registers_per_block_limit': 65_536,
}
_HOPPER = {
  **_GPU,
  'capability': (9, 0),
  'extension': 'ACCELERATED_FEATURES',
  'core_count': 132,
  'fpus_per_core': 128,
  'shared_memory_per_core': 233_472,
  'shared_memory_per_block_optin': 232_448,
  'l2_cache_size': 52_428_800,
  'clock_rate_ghz': 1.98,
}
_OURS = 'commit ea475fc on one H200'
_PLAIN = 'a plain JAX step on one H100, 2026-11-23'
_FOUNDRY = 'llm-foundry at 2048 tokens on 8'
_MAXTEXT = 'MaxText on'

CHIPS = {
  'h100': Chip(
    ('H100',),
    989.4e12,
    80 * _GIB,
    8,
    'cudnn',
    (
      Mfu(124e6, 0.407, _PLAIN),
      Mfu(2.65e9, 0.525, _PLAIN),
      Mfu(6.7e9, 0.464, f'{_FOUNDRY} H100'),
    ),
    xla={
      'name': 'NVIDIA H100 80GB HBM3',
      'memory_bandwidth': 3_352_320_000_000,
      'device_memory_size': 84_942_979_072,
      **_HOPPER,
    },
  ),
  'h200': Chip(
    ('H200',),
    989.4e12,
    141 * _GIB,
    8,
    'cudnn',
    (Mfu(124e6, 0.478, _OURS), Mfu(2.65e9, 0.543, _OURS)),
    xla={
      'name': 'NVIDIA H200 141GB HBM3e',
      'memory_bandwidth': 4_800_000_000_000,
      'device_memory_size': 151_397_597_184,
      **_HOPPER,
    },
  ),
  'a100': Chip(
    ('A100',),
    312e12,
    80 * _GIB,
    8,
    'cudnn',
    (
      Mfu(125e6, 0.448, f'{_FOUNDRY} A100'),
      Mfu(1.3e9, 0.599, f'{_FOUNDRY} A100'),
      Mfu(2.65e9, 0.621, f'{_FOUNDRY} A100'),
      Mfu(6.7e9, 0.642, f'{_FOUNDRY} A100'),
    ),
    xla={
      'name': 'NVIDIA A100-SXM4-80GB',
      'memory_bandwidth': 2_039_040_000_000,
      'device_memory_size': 85_100_068_864,
      **_GPU,
      'capability': (8, 0),
      'extension': 'NONE',
      'core_count': 108,
      'fpus_per_core': 64,
      'shared_memory_per_core': 167_936,
      'shared_memory_per_block_optin': 166_912,
      'l2_cache_size': 41_943_040,
      'clock_rate_ghz': 1.41,
    },
  ),
  'v5e': Chip(
    ('TPU v5 lite', 'TPU v5e'),
    197e12,
    16 * _GIB,
    4,
    'splash',
    (Mfu(16e9, 0.611, f'{_MAXTEXT} 256 v5e'),),
    _FLAT,
  ),
  'v5p': Chip(
    ('TPU v5p', 'TPU v5'),
    459e12,
    95 * _GIB,
    4,
    'splash',
    (Mfu(32e9, 0.715, f'{_MAXTEXT} a v5p-128'),),
    _CUBES,
  ),
  'v6e': Chip(
    ('TPU v6 lite', 'TPU v6e'),
    918e12,
    32 * _GIB,
    4,
    'splash',
    (Mfu(8e9, 0.455, f'{_MAXTEXT} 256 v6e'),),
    _FLAT,
  ),
}
# Others on which a run may find itself.
_OTHER_PEAKS = {'H100 PCIe': 756e12, 'TPU v4': 275e12}


def find(name: str) -> Chip:
  """Returns the chip of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in CHIPS:
    raise ValueError(f'--chip={name}: there are {", ".join(CHIPS)}')
  return CHIPS[name]


def host() -> Chip:
  """Returns this machine as a chip: its memory, and no peak."""
  pages, size = os.sysconf('SC_PHYS_PAGES'), os.sysconf('SC_PAGE_SIZE')
  return Chip(('cpu',), math.nan, pages * size, 1, '')


def of(device: 'jax.Device') -> Chip | None:
  """Returns the chip that a device is; None for others."""
  kinds = {kind: chip for chip in CHIPS.values() for kind in chip.kinds}
  # The longest name first: a "TPU v5 lite" is no "TPU v5".
  for kind in sorted(kinds, key=len, reverse=True):
    if kind in device.device_kind:
      return kinds[kind]
  return None


def peak(device: 'jax.Device') -> float | None:
  """Returns a device's bfloat16 FLOP/s; None where they are not known."""
  # The longest name first: an "H100 PCIe" is no "H100".
  known = _OTHER_PEAKS | {k: c.peak for c in CHIPS.values() for k in c.kinds}
  for kind in sorted(known, key=len, reverse=True):
    if kind in device.device_kind:
      return known[kind]
  return None


def topology(name: str, devices: int, larger: bool = False) -> str:
  """Returns the topology of a slice of TPUs, chips along each dimension.

  Args:
    name: of the chip.
    devices: chips of the slice.
    larger: whether the next larger slice will do.

  Raises:
    ValueError: there is no such slice.
  """
  sizes = {math.prod(map(int, s.split('x'))): s for s in CHIPS[name].slices}
  fits = [n for n in sizes if n >= devices] if larger else [devices]
  if not fits or fits[0] not in sizes:
    raise ValueError(
      f'--devices={devices}: slices of {name} have '
      f'{", ".join(map(str, sizes))} chips'
    )
  return sizes[fits[0]]


def target_config(chip: Chip, cudnn: int, cuda: int) -> str:
  """Returns XLA's GpuTargetConfigProto of a GPU, as text.

  Args:
    chip: the GPU.
    cudnn: version of cuDNN, as it tells it: 92801 is 9.28.1.
    cuda: version of CUDA's runtime: 13050 is 13.5.
  """
  fields = dict(chip.xla)
  name, (major, minor) = fields.pop('name'), fields.pop('capability')
  extension = fields.pop('extension')
  numbers = '\n'.join(f'  {key}: {value}' for key, value in fields.items())
  return f"""
gpu_device_info {{
{numbers}
  cuda_compute_capability {{
    major: {major} minor: {minor} feature_extension: {extension}
  }}
}}
platform_name: "CUDA"
dnn_version_info {{
  major: {cudnn // 10_000} minor: {cudnn // 100 % 100} patch: {cudnn % 100}
}}
runtime_version {{ major: {cuda // 1000} minor: {cuda % 1000 // 10} patch: 0 }}
device_description_str: "{name}"
"""
