"""Worker processes train the runs that they are given."""

import json

import numpy as np
import pytest

from steepest.experiments import tiny
from steepest.training import run as assemble
from steepest.tuning import estimate, pool


def test_a_run_is_the_one_that_train_makes(tmp_path):
  tokens = np.random.default_rng(0).integers(0, 60, 4000).astype(np.uint16)
  np.save(tmp_path / 'tokens.npy', tokens)
  config = tiny.get_config('llama,lion')
  config.model.update(width=16, num_layers=1, num_heads=2, context=16)
  config.model.vocab_size = 64
  config.data.source = f'flat:{tmp_path / "tokens.npy"}'
  config.batch_size, config.steps = 8, 6
  here = assemble.train(config, tmp_path / 'here', {})
  job = {
    'kind': 'run',
    'config': json.loads(config.to_json()),
    'directory': str(tmp_path / 'there'),
  }
  with pool.Pool(1, False, tmp_path / 'logs') as workers:
    messages = []
    # The second job finds the first one's run.
    for _ in range(2):
      workers.start(0, job)
      for message in workers.messages():
        messages.append(message)
        if message['kind'] in ('done', 'failed'):
          break
    seconds = estimate.time_steps(workers, config)
  assert 0 < seconds < here['seconds']
  kinds = [m['kind'] for m in messages]
  assert kinds == [*['row'] * 6, 'run', 'done', 'run', 'done']
  assert [m['row']['step'] for m in messages[:6]] == list(range(6))
  assert {m['run'] for m in messages if 'run' in m} == {job['directory']}
  assert messages[6]['loss'] == pytest.approx(here['train_loss'], rel=1e-5)
  saved = json.loads((tmp_path / 'there/summary.json').read_text('utf-8'))
  assert saved['status'] == 'finished'
