"""Slopes against closed forms, verdicts against their bands."""

import json
import math

from hypothesis import given, strategies as st
import numpy as np
import pytest

from steepest.report import coordinates
from steepest.tuning import slopes

_SIZES = (32, 64, 128, 256)


@given(
  exponent=st.floats(-3, 3),
  scale=st.floats(1e-6, 1e6),
  sizes=st.sets(st.integers(1, 4096), min_size=2, max_size=6),
)
def test_power_laws_have_their_exponent(exponent, scale, sizes):
  sizes = sorted(sizes)
  values = scale * np.array(sizes, float)[:, None] ** exponent
  assert slopes.fit(sizes, values)[0] == pytest.approx(exponent, abs=1e-9)


def test_fit_is_that_of_polyfit():
  values = np.random.default_rng(0).uniform(0.1, 2, (4, 3))
  expected = np.polyfit(np.log2(_SIZES), np.log2(values), 1)[0]
  np.testing.assert_allclose(slopes.fit(_SIZES, values), expected, rtol=1e-9)


def _judged(quantity, values):
  runs = [[{quantity: float(v)} for v in seeds] for seeds in values]
  (row,) = slopes.judge('width', _SIZES, runs)
  return row


def test_mean_and_standard_error_over_seeds():
  values = np.array(_SIZES, float)[:, None] ** np.array([0.0, 0.1, 0.2])
  row = _judged('change/norm', values)
  assert row.slope == pytest.approx(0.1)
  assert row.error == pytest.approx(0.1 / math.sqrt(3))


@pytest.mark.parametrize('bad', [0.0, math.nan, math.inf])
def test_values_without_a_logarithm_fail(bad):
  values = np.ones((4, 2))
  values[1, 1] = bad
  row = _judged('change/norm', values)
  assert not row.passed
  assert 'zero or not finite' in row.words
  saved = slopes.to_dict(row)
  assert saved['slope'] is None and saved['passed'] is False


@pytest.mark.parametrize(
  ('quantity', 'right', 'wrong'),
  [
    ('change/last_block', 0.05, 0.5),
    ('change/last_block', -0.05, -0.5),
    ('change/first_block/attention_logits', -0.4, 0.5),
    ('level/last_block/attention_limits', 0.0, 0.5),
    ('change/logits', -0.5, 0.5),
    ('update/hidden', -1.0, 0.0),
    ('update/readout', 0.0, -1.0),
    ('curvature/hidden', -2.0, -1.0),
    ('unclipped/gain', 0.0, -0.7),
  ],
)
def test_verdicts(quantity, right, wrong):
  def passes(exponent):
    row = _judged(quantity, np.array(_SIZES, float)[:, None] ** exponent)
    assert row.words
    return row.passed

  assert passes(right) and not passes(wrong)


def test_other_quantities_are_recorded_only():
  runs = [[{'level/norm': 1.0, 'change/norm': 1.0}] for _ in _SIZES]
  rows = slopes.judge('width', _SIZES, runs)
  assert [row.quantity for row in rows] == ['change/norm', 'level/norm']
  assert rows[1].band is None and rows[1].passed
  assert slopes.to_dict(rows[1])['passed'] is None


def test_page_needs_no_network_and_escapes(tmp_path):
  runs = [[{'change/norm': 1.0, 'change/logits': float(n)}] for n in _SIZES]
  rows = slopes.judge('width', _SIZES, runs)
  checked = {
    'rows': [slopes.to_dict(row) for row in rows],
    'env': {'git_commit': 'abc', 'device_kind': 'cpu'},
  }
  (tmp_path / 'coordcheck.json').write_text(json.dumps(checked))
  path = coordinates.write(tmp_path, 'a <b> check', 'ten steps')
  page = path.read_text('utf-8')
  assert 'a &lt;b&gt; check' in page
  assert '<script src=' not in page and '>fails<' in page
