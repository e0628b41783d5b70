"""Scaled rotary positions against their definitions, one pair at a time."""

import math

import numpy as np
import pytest

from steepest.models import rotary


def _llama3(frequency, factor, low, high, context):
  """As the paper's code has it: by wavelength, in three cases."""
  wavelength = 2 * math.pi / frequency
  if wavelength < context / high:
    return frequency
  if wavelength > context / low:
    return frequency / factor
  smooth = (context / wavelength - low) / (high - low)
  return (1 - smooth) * frequency / factor + smooth * frequency


@pytest.mark.parametrize('half', [8, 64])
def test_llama3_scaling(half):
  plain = [500_000.0 ** (-i / half) for i in range(half)]
  wanted = [_llama3(f, 8.0, 1.0, 4.0, 8192) for f in plain]
  got = rotary.frequencies(half, 500_000.0, 'llama3:8:1:4:8192')
  np.testing.assert_allclose(got, wanted, rtol=2e-6)
  # All three cases occur.
  ratios = {round(g / p, 3) for g, p in zip(got, plain)}
  assert {1.0, 0.125} < ratios


def test_linear_and_no_scaling():
  plain = rotary.frequencies(8, 1e4, '')
  np.testing.assert_allclose(plain, 1e4 ** -(np.arange(8) / 8), rtol=1e-6)
  np.testing.assert_array_equal(
    rotary.frequencies(8, 1e4, 'linear:4'), plain / 4
  )


@pytest.mark.parametrize(
  'scaling',
  ['yarn:4', 'linear', 'linear:0', 'linear:x', 'llama3:8:4:1:64', 'linear:inf'],
)
def test_other_scalings_are_refused(scaling):
  with pytest.raises(ValueError, match=f'rope_scaling=.{scaling}.: give lin'):
    rotary.parse(scaling)
