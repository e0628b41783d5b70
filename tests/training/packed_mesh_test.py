"""Packed documents on eight simulated devices give what one device gives."""

import jax
import numpy as np
import pytest

from steepest.training import step as step_lib

_MESHES = {
  'fsdp=2,sequence=2,tensor=2': {
    'mesh__fsdp': 2,
    'mesh__sequence': 2,
    'mesh__tensor': 2,
  },
  'data=2,fsdp=2,microbatches=2': {
    'mesh__data': 2,
    'mesh__fsdp': 2,
    'microbatches': 2,
  },
}


def _pack(batch):
  """Adds documents of 5, 4 and 7 tokens, shifted from row to row."""
  first = np.zeros(batch['inputs'].shape, bool)
  for row in range(len(first)):
    first[row, [0, (5 + row) % 16, (9 + row) % 16]] = True
  at = np.arange(first.shape[1])[None]
  starts = np.maximum.accumulate(np.where(first, at, 0), 1)
  ids = np.cumsum(first, 1)
  return {
    **batch,
    'segment_ids': ids.astype(np.int32),
    'positions': (at - starts).astype(np.int32),
  }


def _compute(trainer, params, batch):
  setup = trainer.setup
  fn = lambda p, b: (
    step_lib.gradient(setup, p, b),
    step_lib.curvature(setup, p, b, 7, 3),
  )
  with jax.set_mesh(setup.mesh):
    params = jax.device_put(params, setup.shardings.params)
    result = jax.device_get(jax.jit(fn)(params, trainer.put(batch)))
  held = trainer.put({**batch, 'mask': np.ones(16, np.float32)})
  return result, jax.device_get(step_lib.eval_loss(setup, params, held))


def _close(tree, wanted):
  largest = max(np.abs(w).max() for w in jax.tree.leaves(wanted))

  def check(got, of_one):
    scale = max(np.abs(of_one).max(), 1e-3 * largest)
    np.testing.assert_allclose(got, of_one, rtol=0, atol=1e-5 * scale)

  jax.tree.map(check, tree, wanted)


@pytest.mark.slow
@pytest.mark.parametrize('mesh', _MESHES)
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_packed_documents(configure, make_trainer, make_batch, name, mesh):
  batch = _pack(make_batch())
  one = make_trainer(configure(name, 'sophia'))
  params = jax.device_get(one.init().params)
  ((losses, grads), curvature), (total, _) = _compute(one, params, batch)
  loss = float(losses['train/loss'])
  assert float(total) / 16 == pytest.approx(loss, rel=1e-5)
  many = make_trainer(configure(name, 'sophia', **_MESHES[mesh]))
  ((other, others), curvatures), (totals, _) = _compute(many, params, batch)
  assert float(other['train/loss']) == pytest.approx(loss, rel=1e-5)
  assert float(totals) == pytest.approx(float(total), rel=1e-5)
  _close(others, grads)
  _close(curvatures, curvature)
