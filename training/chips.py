"""What accelerators can do, from their makers' data sheets.

NVIDIA: "H100 Tensor Core GPU", "H200 Tensor Core GPU" and "A100 80GB"
data sheets, SXM forms, dense rates; nodes of eight with a 400 Gb/s (A100:
200 Gb/s) network adapter for each GPU, as in DGX systems. Google: the system
architecture pages "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU
documentation.
"""

import dataclasses
import math

from steepest.training import flops

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator.

  Attributes:
    peak: dense bfloat16 FLOP/s.
    memory: bytes.
    bandwidth: of the memory, bytes/s.
    link: to the other chips of a node or, for TPUs, of a slice, bytes/s in
      one direction.
    network: to other nodes or slices, bytes/s a chip in one direction.
    group: chips that the fast links join.
    host: chips of a machine.
    attention: kernel that keeps no L×L scores for the backward pass, 'cudnn',
      'splash' or ''; models/attention.py says when it serves.
  """

  peak: float
  memory: int
  bandwidth: float
  link: float
  network: float
  group: int
  host: int
  attention: str


def _gpu(
  kind: str, gib: int, bandwidth: float, link: float, network: float
) -> Chip:
  peak = flops.PEAKS[kind]
  return Chip(peak, gib * _GIB, bandwidth, link, network, 8, 8, 'cudnn')


def _tpu(
  kind: str, gib: int, bandwidth: float, both_ways: float, largest: int
) -> Chip:
  # Data-centre network: 200 Gb/s a machine of four chips, at least.
  peak, network = flops.PEAKS[kind], 6.25e9
  link = both_ways / 2
  return Chip(peak, gib * _GIB, bandwidth, link, network, largest, 4, 'splash')


CHIPS = {
  'h100': _gpu('H100', 80, 3.35e12, 450e9, 50e9),
  'h200': _gpu('H200', 141, 4.8e12, 450e9, 50e9),
  'a100': _gpu('A100', 80, 2.039e12, 300e9, 25e9),
  'v5e': _tpu('TPU v5e', 16, 819e9, 400e9, 256),
  'v5p': _tpu('TPU v5p', 95, 2765e9, 1200e9, 6144),
  'v6e': _tpu('TPU v6e', 32, 1638e9, 800e9, 256),
}

# Topologies of TPU slices: machines of Google Cloud, its pages "TPU v5e",
# "TPU v5p" and "TPU v6e".
_FLAT = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8'),
  *('8x8x8', '8x8x16', '8x16x16'),
)
TOPOLOGIES = {'v5e': _FLAT, 'v5p': _CUBES, 'v6e': _FLAT}


def topology(chip: str, devices: int) -> str:
  """Returns the topology of a slice of TPUs, chips along each dimension.

  Raises:
    ValueError: there is no such slice.
  """
  sizes = {
    math.prod(map(int, name.split('x'))): name for name in TOPOLOGIES[chip]
  }
  if devices not in sizes:
    raise ValueError(
      f'--devices={devices}: slices of {chip} have '
      f'{", ".join(map(str, sizes))} chips'
    )
  return sizes[devices]
