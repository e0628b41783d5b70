"""What Google Cloud calls TPU slices, from its documentation of each version.

"TPU v5e", "TPU v5p", "TPU v6e" and "TPUs in GKE": topologies, types, labels.
"""

import dataclasses

# Chips → topology, for slices of one and of several machines.
_FLAT = {
  4: '2x2',
  8: '2x4',
  16: '4x4',
  32: '4x8',
  64: '8x8',
  128: '8x16',
  256: '16x16',
}
_CUBES = {
  4: '2x2x1',
  8: '2x2x2',
  16: '2x2x4',
  32: '2x4x4',
  64: '4x4x4',
  128: '4x4x8',
  256: '4x8x8',
  512: '8x8x8',
  1024: '8x8x16',
  2048: '8x16x16',
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice of TPUs.

  Attributes:
    accelerator_type: for queued resources.
    runtime: software version of its machines.
    gke_label: of GKE's nodes.
    topology: chips along each dimension.
  """

  accelerator_type: str
  runtime: str
  gke_label: str
  topology: str


def slice_of(chip: str, chips: int) -> Slice:
  """Returns the slice of that many chips.

  Raises:
    ValueError: there is none.
  """
  topologies = _CUBES if chip == 'v5p' else _FLAT
  if chips not in topologies:
    raise ValueError(
      f'--devices={chips}: slices of {chip} have '
      f'{", ".join(map(str, topologies))} chips'
    )
  topology = topologies[chips]
  if chip == 'v5e':
    return Slice(
      f'v5litepod-{chips}',
      'v2-alpha-tpuv5-lite',
      'tpu-v5-lite-podslice',
      topology,
    )
  if chip == 'v5p':
    # Counted in cores, two a chip.
    return Slice(
      f'v5p-{2 * chips}', 'v2-alpha-tpuv5', 'tpu-v5p-slice', topology
    )
  return Slice(f'v6e-{chips}', 'v2-alpha-tpuv6e', 'tpu-v6e-slice', topology)
