"""Accelerators: their makers' specifications, and the MFU measured on them.

Each chip names its source. Peaks are dense, of the SXM form if there are
several, with float32 accumulation. Memory sizes are from the data sheets; chips
that store error-correcting codes in the memory itself (GDDR6) have 15/16 of it
left. Slices of TPUs are those of the Cloud TPU documentation.
Link rates are from the same sheets, in one direction. Network rates are of
systems with eight GPUs: 400 Gb/s per adapter, 200 for the A100 (DGX sheets).
XLA's descriptions are OpenXLA's, xla/backends/gpu/target_config/specs, which
were read from such devices.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import difflib
import math
import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import jax

_GIB = 2**30
# Slices that Google Cloud offers: chips along each dimension.
_FLAT = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8'),
  *('8x8x8', '8x8x16', '8x16x16'),
)


@dataclasses.dataclass(frozen=True)
class Mfu:
  """A share of the peak that training reached.

  Attributes:
    parameters: the model's number of parameters.
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
    source: source of peak and memory.
    kinds: substrings of JAX's names for it.
    peak: dense bfloat16 FLOP/s; float16 for the T4, which lacks bfloat16.
    memory: bytes.
    host: chips per machine, as providers rent them.
    attention: the kernel that stores no L×L scores for the backward pass:
      'cudnn', 'splash' or ''; models/attention.py says when it applies.
    measured: MFU of models of several sizes.
    slices: TPU topologies, smallest first.
    xla: for a GPU, fields of XLA's GpuDeviceInfoProto, its `name`, compute
      `capability` and feature `extension`.
    link: bytes/s that it receives over its machine's links or, for a TPU, those
      along one dimension of its slice; 0: unknown.
    network: likewise over its share of the machine's network adapters.
  """

  source: str
  kinds: tuple[str, ...]
  peak: float
  memory: int
  host: int
  attention: str
  measured: tuple[Mfu, ...] = ()
  slices: tuple[str, ...] = ()
  xla: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  link: float = 0.0
  network: float = 0.0

  @property
  def is_gpu(self) -> bool:
    """Whether it is a GPU; otherwise it is a TPU or the CPU."""
    return self.attention != 'splash' and not math.isnan(self.peak)

  def mfu(self, parameters: float) -> Mfu | None:
    """Returns the MFU measured on the model closest in size."""
    distance = lambda m: abs(math.log(m.parameters / parameters))
    return min(self.measured, key=distance, default=None)

  def bandwidth(self, span: int) -> float:
    """Returns the bytes/s that one of `span` adjacent chips receives.

    NaN if unknown.
    """
    apart = self.is_gpu and span > self.host
    return (self.network if apart else self.link) or math.nan


# Shared by all GPUs from the A100 to the H200.
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
    'NVIDIA, H100 Tensor Core GPU data sheet',
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
    link=450e9,
    network=50e9,
    xla={
      'name': 'NVIDIA H100 80GB HBM3',
      'memory_bandwidth': 3_352_320_000_000,
      'device_memory_size': 84_942_979_072,
      **_HOPPER,
    },
  ),
  'h200': Chip(
    'NVIDIA, H200 Tensor Core GPU data sheet',
    ('H200',),
    989.4e12,
    141 * _GIB,
    8,
    'cudnn',
    (Mfu(124e6, 0.478, _OURS), Mfu(2.65e9, 0.543, _OURS)),
    link=450e9,
    network=50e9,
    xla={
      'name': 'NVIDIA H200 141GB HBM3e',
      'memory_bandwidth': 4_800_000_000_000,
      'device_memory_size': 151_397_597_184,
      **_HOPPER,
    },
  ),
  'a100': Chip(
    'NVIDIA, A100 80GB data sheet',
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
    link=300e9,
    network=25e9,
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
    'Cloud TPU documentation, TPU v5e',
    ('TPU v5 lite', 'TPU v5e'),
    197e12,
    16 * _GIB,
    4,
    'splash',
    (Mfu(16e9, 0.611, f'{_MAXTEXT} 256 v5e'),),
    _FLAT,
    link=100e9,
  ),
  'v5p': Chip(
    'Cloud TPU documentation, TPU v5p',
    ('TPU v5p', 'TPU v5'),
    459e12,
    95 * _GIB,
    4,
    'splash',
    (Mfu(32e9, 0.715, f'{_MAXTEXT} a v5p-128'),),
    _CUBES,
    link=200e9,
  ),
  'v6e': Chip(
    'Cloud TPU documentation, TPU v6e',
    ('TPU v6 lite', 'TPU v6e'),
    918e12,
    32 * _GIB,
    4,
    'splash',
    (Mfu(8e9, 0.455, f'{_MAXTEXT} 256 v6e'),),
    _FLAT,
    link=200e9,
  ),
  'v7': Chip(
    # JAX sees two devices per chip, each with half of it.
    'Cloud TPU documentation, TPU7x',
    ('TPU7x',),
    2307e12 / 2,
    96 * _GIB,
    8,
    'splash',
  ),
  'b200': Chip(
    'NVIDIA, HGX B200 data sheet',
    ('B200',),
    2250e12,
    180 * _GIB,
    8,
    'cudnn',
  ),
  'gh200': Chip(
    'NVIDIA, GH200 Grace Hopper Superchip data sheet, 96 GB',
    ('GH200',),
    989.4e12,
    96 * _GIB,
    1,
    'cudnn',
  ),
  'l40s': Chip(
    'NVIDIA, L40S data sheet',
    ('L40S',),
    362.05e12,
    45 * _GIB,
    8,
    'cudnn',
  ),
  'a10g': Chip(
    'NVIDIA and AWS, A10G data sheet',
    ('A10G',),
    70e12,
    45 * _GIB // 2,
    8,
    'cudnn',
  ),
  'rtx4090': Chip(
    'NVIDIA, Ada GPU architecture white paper',
    ('RTX 4090',),
    165.2e12,
    24 * _GIB,
    8,
    'cudnn',
  ),
  'rtx5090': Chip(
    'NVIDIA, RTX Blackwell GPU architecture white paper',
    ('RTX 5090',),
    209.5e12,
    32 * _GIB,
    8,
    'cudnn',
  ),
  't4': Chip(
    'NVIDIA, T4 Tensor Core GPU data sheet',
    ('Tesla T4',),
    65e12,
    15 * _GIB,
    8,
    '',
  ),
  'mi300x': Chip(
    'AMD, Instinct MI300X data sheet',
    ('MI300X',),
    1307.4e12,
    192 * _GIB,
    8,
    '',
  ),
}
# Other chips that a run may find itself on.
_OTHER_PEAKS = {'GB200': 2500e12, 'H100 PCIe': 756e12, 'TPU v4': 275e12}


def name_of(text: str) -> str:
  """Returns the chip's name as in CHIPS, however `text` spells it.

  Raises:
    ValueError: no chip has that name; names the nearest.
  """
  name = re.sub(r'[^a-z0-9]', '', text.lower())
  among(name, CHIPS, f'--chip={text}: there are')
  return name


def among(name: str, known: Iterable[str], said: str) -> None:
  """Raises a ValueError if a name is unknown.

  Args:
    name: the name to look for.
    known: all names; the message lists them after the nearest.
    said: how the message begins.
  """
  if name in known:
    return
  near = difflib.get_close_matches(name, known, 1)
  hint = f'; did you mean {near[0]}?' if near else ''
  raise ValueError(f'{said} {", ".join(known)}{hint}')


def find(name: str) -> Chip:
  """Returns the chip of that name; raises as `name_of` does."""
  return CHIPS[name_of(name)]


def host() -> Chip:
  """Returns this machine as a chip: its memory, and no peak."""
  pages, size = os.sysconf('SC_PHYS_PAGES'), os.sysconf('SC_PAGE_SIZE')
  return Chip('this machine', ('cpu',), math.nan, pages * size, 1, '')


def of(device: 'jax.Device') -> Chip | None:
  """Returns a device's chip; None if unknown."""
  kinds = {kind: chip for chip in CHIPS.values() for kind in chip.kinds}
  # The longest name first: a "TPU v5 lite" is no "TPU v5".
  for kind in sorted(kinds, key=len, reverse=True):
    if kind in device.device_kind:
      return kinds[kind]
  return None


def peak(device: 'jax.Device') -> float | None:
  """Returns a device's bfloat16 FLOP/s; None if unknown."""
  # The longest name first: an "H100 PCIe" is no "H100".
  known = _OTHER_PEAKS | {k: c.peak for c in CHIPS.values() for k in c.kinds}
  for kind in sorted(known, key=len, reverse=True):
    if kind in device.device_kind:
      return known[kind]
  return None


def topology(name: str, devices: int, larger: bool = False) -> str:
  """Returns the topology of a TPU slice, as chips along each dimension.

  Args:
    name: the chip's name.
    devices: number of chips in the slice.
    larger: whether to accept the next larger slice.

  Raises:
    ValueError: there is no such slice.
  """
  sizes = {math.prod(map(int, s.split('x'))): s for s in CHIPS[name].slices}
  if not sizes:
    raise ValueError(f'--chip={name}: its slices are not known')
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
    cudnn: cuDNN version, as cuDNN encodes it: 92801 is 9.28.1.
    cuda: CUDA runtime version: 13050 is 13.5.
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
