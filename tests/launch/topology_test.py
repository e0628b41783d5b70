"""A run that goes on elsewhere sees the same batches and ends the same.

Others of several processes: distributed_test.py.
"""

import numpy as np
import pytest

from steepest.experiments import tiny
from steepest.training import metrics, run as assemble

_COMMON = {
  'data.source': 'flat:tests/golden/tokens.npy',
  'model.num_layers': 1,
  'model.width': 32,
  'model.context': 16,
  'model.vocab_size': 124,
  'optimizer.hessian_every': 2,
  'optimizer.lr': 1e-3,
  'schedule.kind': 'constant',
  'checkpoint_every': 3,
}
# Devices shrink from eight to one; axes and micro-batches change with them.
_PLACES = (
  {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2},
  {'mesh.data': 1, 'mesh.fsdp': 4, 'microbatches': 2},
  {'mesh.data': 2, 'mesh.fsdp': 1, 'microbatches': 4},
  {'mesh.data': 1, 'microbatches': 1},
)


@pytest.mark.parametrize(
  'variant',
  [
    'llama,lion',
    # training/mesh_test.py has its curvature.
    pytest.param('llama,sophia', marks=pytest.mark.slow),
    pytest.param('gpt2,adamw', marks=pytest.mark.slow),
  ],
)
def test_eight_devices_then_four_two_and_one(
  tmp_path, monkeypatch, golden, variant
):
  monkeypatch.chdir(golden.parent.parent)

  def train(workdir, steps, place):
    config = tiny.get_config(variant)
    keys = {**_COMMON, **place, 'steps': steps}
    config.update_from_flattened_dict(keys)
    assemble.train(config, workdir)

  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  train(whole, 12, {'mesh.data': 1})
  for i, place in enumerate(_PLACES, 1):
    train(parts, 3 * i, place)
  rows, wanted = metrics.read_rows(parts), metrics.read_rows(whole)
  assert [row['step'] for row in rows] == list(range(12))
  for name in ('train/loss', 'grad_norm', 'param_norm'):
    got = [row[name] for row in rows]
    np.testing.assert_allclose(
      got, [row[name] for row in wanted], rtol=1e-5, err_msg=name
    )
