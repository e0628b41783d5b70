"""Schedule-Free from text to an exported model: one average in all of it."""

import json

import jax
import numpy as np
import optax
import pytest

from steepest.training import config as validation, loading, run as assemble
from steepest.training.checkpoint import Checkpointer

_WORDS = 'steep shallow valley ridge step slope noise curve'.split()


@pytest.fixture(scope='module')
def trained(fork_commands, tmp_path_factory):
  """Returns the workdir and the directory of the exported model."""
  root = tmp_path_factory.mktemp('schedule_free')
  draw = np.random.default_rng(0)
  lines = [{'text': ' '.join(draw.choice(_WORDS, 60))} for _ in range(90)]
  (root / 'text.jsonl').write_text(
    ''.join(json.dumps(line) + '\n' for line in lines), 'utf-8'
  )
  prepare = [
    f'--input={root / "text.jsonl"}',
    '--tokenizer=bpe-train:280',
    f'--out={root / "shards"}',
    '--validation_fraction=0.2',
  ]
  config = {
    'data.source': f'shards:{root / "shards"}',
    'model.num_layers': 1,
    'model.context': 16,
    'optimizer.lr': 0.02,
    'steps': 12,
    'eval_every': 6,
    'eval_sequences': 8,
    'checkpoint_every': 6,
    'mesh.data': 1,
  }
  train = [
    '--config=experiments/tiny.py:gpt2,schedule_free',
    f'--workdir={root / "run"}',
    *(f'--config.{key}={value}' for key, value in config.items()),
  ]
  export = [f'--model=ckpt:{root / "run"}', f'--out={root / "exported"}']
  jobs = [('prepare', prepare), ('train', train), ('export', export)]
  for done in fork_commands(jobs):
    assert done.code == 0, done.err
  return root / 'run', root / 'exported'


def _loss(logits_of, model, batches):
  """Returns the mean over the sequences that count, by Optax."""
  sums = []
  for batch in batches:
    loss_BxL = optax.softmax_cross_entropy_with_integer_labels(
      logits_of(model, batch['inputs']), batch['targets']
    )
    sums.append(np.asarray(loss_BxL.mean(-1) * batch['mask']))
  return np.sum(sums) / sum(batch['mask'].sum() for batch in batches)


def test_what_is_exported_is_what_was_evaluated(trained, logits_of):
  workdir, exported = trained
  summary = json.loads((workdir / 'summary.json').read_text('utf-8'))
  held = assemble.open_data(validation.read_config(workdir)).validation()
  (batches,) = held.values()
  for spec in (f'ckpt:{workdir}', f'hf:{exported}'):
    loss = _loss(logits_of, loading.load_model(spec), batches)
    np.testing.assert_allclose(loss, summary['eval_loss'], rtol=1e-5)


def test_what_was_evaluated_is_not_what_was_trained(trained, logits_of):
  """The last iterate is elsewhere: its loss differs by far more."""
  workdir, _ = trained
  config = validation.read_config(workdir)
  held = assemble.open_data(config).validation()
  (batches,) = held.values()
  model = loading.load_model(f'ckpt:{workdir}')
  steps = model.description['steps']
  checkpointer = Checkpointer(workdir / 'checkpoints', 1, read_only=True)
  shapes = jax.eval_shape(lambda: model.params)
  iterate = checkpointer.restore_params(shapes, steps)
  summary = json.loads((workdir / 'summary.json').read_text('utf-8'))
  loss = _loss(logits_of, model._replace(params=iterate), batches)
  assert abs(loss - summary['eval_loss']) > 1e-3
