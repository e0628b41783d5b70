"""What `launch.watch` shows of runs."""

import json


def test_the_command_prints_one_view(fork_commands, tmp_path):
  run = tmp_path / 'run'
  run.mkdir()
  (run / 'config.json').write_text('{"steps": 100, "checkpoint_every": 0}')
  rows = [
    {
      'step': step,
      'train/loss': 4.0,
      'tokens': 1000 * (step + 1),
      'seconds': 0.5 * (step + 1),
      'data/wait_seconds': 0.0,
      'tokens_per_second': 2000.0,
    }
    for step in range(30)
  ]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (run / 'metrics.jsonl').write_text(text)
  (shown,) = fork_commands([('watch', [str(run), '--once'])])
  assert shown.code == 0, shown.err
  assert '30/100' in shown.out and '2,000' in shown.out
