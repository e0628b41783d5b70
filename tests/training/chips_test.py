"""The table of chips: peaks by JAX's names, and what the data sheets say."""

import types

import pytest

from steepest.training import chips


@pytest.mark.parametrize(
  'kind, peak',
  [
    ('NVIDIA H100 80GB HBM3', 989.4e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5p', 459e12),
    ('TPU v4', 275e12),
    ('TPU v6 lite', 918e12),
    ('TPU7x', 2307e12 / 2),
    ('NVIDIA GH200 480GB', 989.4e12),
    ('NVIDIA GB200', 2500e12),
    ('NVIDIA L40S', 362.05e12),
    ('NVIDIA GeForce RTX 5090', 209.5e12),
    ('Tesla T4', 65e12),
    ('AMD Instinct MI300X', 1307.4e12),
    ('cpu', None),
  ],
)
def test_peaks_by_the_devices_name(kind, peak):
  assert chips.peak(types.SimpleNamespace(device_kind=kind)) == peak


@pytest.mark.parametrize('text', ['B200', 'GH200', 'RTX 4090', 'MI300X', 'V7'])
def test_names_are_taken_in_any_case_and_the_nearest_is_told(text):
  chip = chips.find(text)
  assert chip is chips.CHIPS[text.lower().replace(' ', '')]
  assert chip.source and chip.is_gpu == (text != 'V7')
  with pytest.raises(ValueError, match=f'--chip={text}x: .*; did you mean '):
    chips.find(f'{text}x')


@pytest.mark.parametrize('name', ['h100', 'h200', 'a100'])
def test_a_gpu_is_described_to_xla_as_by_its_data_sheet(name):
  """Memory bandwidths of the data sheets; a little memory is the driver's."""
  chip = chips.find(name)
  bandwidth = {'h100': 3.35e12, 'h200': 4.8e12, 'a100': 2.039e12}[name]
  assert chip.xla['memory_bandwidth'] == pytest.approx(bandwidth, rel=0.002)
  assert 0.98 < chip.xla['device_memory_size'] / chip.memory <= 1


def test_the_mfu_of_the_nearest_size_counts():
  chip = chips.find('a100')
  for parameters, share in ((1e8, 0.448), (9e8, 0.599), (2e11, 0.642)):
    assert chip.mfu(parameters).share == share
  assert chips.host().mfu(1e8) is None
  with pytest.raises(ValueError, match='--chip=b52: there are h100, h200'):
    chips.find('b52')
