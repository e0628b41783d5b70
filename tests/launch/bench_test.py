"""`python -m launch.bench` and plans of studies as their users meet them."""

import re

_GPT2 = '--config=experiments/gpt2_124m.py:adamw'


def test_exit_status_says_whether_it_fits(fork_commands):
  small, large, unknown = fork_commands(
    [
      ('bench', ['--plan', _GPT2, '--devices=8', '--chip=H100', '--price=2.5']),
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
      ('bench', ['--plan', _GPT2, '--chip=L40S']),
    ]
  )
  assert small.code == 0, small.err
  for part, how in (
    ('parameters', 'exact'),
    ('optimizer', 'exact'),
    ('activations', 'estimate'),
    ('logits', 'estimate'),
  ):
    assert re.search(rf'{part} +\d+\.\d\d GiB +{how}', small.out)
  assert re.search(r'an MFU of 40\.7%, measured with 0\.124 G', small.out)
  [(hours, dollars)] = re.findall(
    r'10\.49 G tokens: (\d+\.\d) h, \$(\S+) at \$2\.5 a chip-hour', small.out
  )
  assert abs(float(dollars) / (8 * 2.5) - float(hours)) <= 0.05
  # Parameters and two moments in float32.
  [parameters, checkpoint] = (
    float(re.search(rf'{part} +(\d+\.\d\d) GiB', small.out)[1])
    for part in ('parameters', 'a checkpoint:')
  )
  assert abs(checkpoint - 3 * parameters) < 0.02
  assert large.code == 3, large.err
  assert unknown.code == 0 and 'no MFU is known' in unknown.out
  assert re.search(
    r'does not fit, by \d+\.\d GiB a device: try --config\.microbatches=2 '
    r'\(14\.\d GiB a device, 0\.\d+ s a step\)\n$',
    large.out,
  )


def test_the_plan_of_a_study_has_prices_checkpoints_and_what_fits(
  fork_commands,
):
  words = ['--plan', '--config=experiments/paper_study.py', '--chip=H100']
  words += ['--config.study.models=gpt2', '--optimizers=adamw', '--devices=64']
  quick = ['--plan', '--config=experiments/quickstart.py', '--chip=L40S']
  done, unknown = fork_commands(
    [
      ('study', [*words, '--price=2.5', '--minutes=600']),
      ('study', [*quick, '--minutes=600']),
    ]
  )
  assert done.code == 0, done.err
  # No MFU of that chip is known.
  said = 'timed steps will tell what 600 minutes are enough for'
  assert unknown.out.splitlines()[-1] == said
  # Parameters of the target and two moments in float32.
  L, D, V, T = 32, 2560, 50_304, 2048
  size = 12 * (V * D + T * D + L * (12 * D**2 + 2 * D) + D)
  rows = re.findall(r'train (\S+) .* GiB +(\S+) GiB .* (\S+)', done.out)
  assert [row[:2] for row in rows] == [
    (f'gpt2-adamw{point}', f'{size / 2**30:.3g}') for point in ('', '-epochs=4')
  ]
  [(hours, dollars)] = re.findall(
    r'runs, (\S+) h100-hours: .*, \$(\S+) at \$2\.5 a chip-hour', done.out
  )
  hours, dollars = (float(x.replace(',', '')) for x in (hours, dollars))
  assert abs(dollars / 2.5 - hours) <= 0.5
  # Trials take an hour or less, side by side; targets days of eight chips.
  assert all(float(row[2]) / 8 > 24 for row in rows)
  assert done.out.splitlines()[-2:] == [
    '600 minutes are enough for 24 of 26 runs',
    'no time for targets of gpt2-adamw 1 of 1, gpt2-adamw-epochs=4 1 of 1',
  ]


_SMALL = [
  '--config=experiments/tiny.py:gpt2,adamw',
  '--config.model.vocab_size=256',
  '--config.model.num_layers=1',
  '--config.mesh.data=2',
  '--devices=2',
  '--chip=cpu',
]


def test_what_is_compiled_is_read(fork_commands):
  [done] = fork_commands([('bench', ['--compile', *_SMALL])])
  assert done.code == 0, done.err
  memory, _, tables = done.out.partition('compiled in ')
  assert re.search(r'in all +\d+\.\d+ +\d+\.\d+', memory)
  # No MFU is known of a CPU, so no hours are.
  assert 'no MFU is known' in memory and 'G tokens' not in memory
  kinds, _, rest = tables.partition('every step')
  assert re.search(r'matrix product +\d+ +\d+\.\d+', kinds)
  assert re.search(r'in branches +\S.* +\d+ +\d+\.\d+', rest)
  # The largest with what they are of, then collectives.
  assert re.search(r'\S+ +\S+/\S+ +\d+ +\d+\.\d+', rest)
  assert re.search(r'all-reduce +0 run beside other kernels +1 ', rest)
