"""`python -m launch.bench` as its users meet it."""

import re

_GPT2 = '--config=experiments/gpt2_124m.py:adamw'


def test_exit_status_says_whether_it_fits(fork_commands):
  small, large, other, forgotten = fork_commands(
    [
      ('bench', ['--plan', _GPT2, '--devices=8', '--chip=h100']),
      (
        'bench',
        [
          '--plan',
          _GPT2,
          '--devices=8',
          '--chip=v5e',
          '--config.microbatches=1',
        ],
      ),
      ('bench', ['--plan', _GPT2, '--chip=b52']),
      ('bench', [_GPT2]),
    ]
  )
  assert small.code == 0, small.err
  for word in ('parameters', 'optimizer', 'gradients', 'activations', 'logits'):
    assert re.search(rf'{word} +\d+\.\d\d GiB', small.out)
  assert re.search(r'10\.49 G tokens: \d+\.\d h', small.out)
  assert large.code == 3, large.err
  assert re.search(r'does not fit, by \d+\.\d GiB a device', large.out)
  assert re.search(r'these fit:\n  --config\.microbatches=\d+: ', large.out)
  assert (other.code, forgotten.code) == (1, 1)
  assert other.err == (
    'error: --chip=b52: there are h100, h200, a100, v5e, v5p, v6e\n'
  )
  assert 'give --plan' in forgotten.err


_SMALL = [
  '--config=experiments/tiny.py:gpt2,adamw',
  '--config.model.vocab_size=256',
  '--chip=cpu',
]


def test_kernels_follow_the_memory_of_what_is_compiled(fork_commands):
  listed, alone = fork_commands(
    [
      ('bench', ['--compile', '--kernels', *_SMALL]),
      ('bench', ['--kernels', *_SMALL]),
    ]
  )
  assert listed.code == 0, listed.err
  memory, _, tables = listed.out.partition('compiled in ')
  assert re.search(r'in all +\d+\.\d+ +\d+\.\d+', memory)
  kernels, _, kinds = tables.partition('at every step')
  # By name with its origin, then by kind: runs, GB, TFLOP; branches apart.
  assert re.search(r'in branches +\d+ +\d+\.\d+', kinds)
  assert re.search(r'matrix product +\S+ +\d+ .*dot_general', kernels)
  assert re.search(r'reduction +\d+ +\d+\.\d+', kernels)
  assert re.match(r' +\d+ +\d+\.\d+ +\d+\.\d+\n', kinds)
  # A CPU has no rates to compute times from.
  assert ' ms' not in tables
  assert (alone.code, alone.err) == (
    1,
    'error: --kernels: give --compile too\n',
  )
