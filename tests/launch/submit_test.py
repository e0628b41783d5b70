"""`python -m launch.submit` as its users meet it."""

import pathlib

from ml_collections import ConfigDict
import pytest

from steepest.launch import job as jobs

_TINY = '--config=experiments/tiny.py:gpt2,adamw'
_GPT2 = '--config=experiments/gpt2_124m.py:lion'
_CHIPS = ('--chip=h100', '--devices=16')


def test_dry_runs_print_all_and_leave_nothing(fork_commands, tmp_path):
  workdir = f'--workdir={tmp_path}/it'
  base = [_GPT2, *_CHIPS, workdir, '--dry_run', '--config.optimizer.lr=1e-4']
  slurm, gke, tpu, xmanager, local = fork_commands(
    [
      ('submit', ['--to=slurm', '--sweep=seed=0,1', *base]),
      ('submit', ['--to=gke', '--option=image=i', '--option=claim=c', *base]),
      (
        'submit',
        [
          '--to=tpu-vm',
          '--option=project=p',
          '--option=zone=z',
          '--option=bucket=b',
          *base,
          '--chip=v6e',
        ],
      ),
      ('submit', ['--to=xmanager', *base]),
      (
        'submit',
        ['--to=local', _TINY, workdir, '--processes=2', '--dry_run'],
      ),
    ]
  )
  for result in (slurm, gke, tpu, xmanager, local):
    assert result.code == 0, result.err
  for result in (slurm, gke, tpu, xmanager):
    assert 'mesh data=16 fsdp=1 tensor=1 sequence=1; ' in result.out
    assert ' h\n' in result.out
    assert '--config.optimizer.lr=0.0001' in result.out
  assert '# seed=1: mesh' in slurm.out and '#SBATCH --array=0-1' in slurm.out
  assert '# no plan: no accelerator' in local.out
  assert local.out.count('-m steepest.launch.train') == 2
  assert not any(tmp_path.iterdir())


def test_workers_of_a_study_share_its_directory(fork_commands, tmp_path):
  study = '--config=experiments/quickstart.py'
  words = [study, '--processes=3', f'--workdir={tmp_path}/s', '--dry_run']
  slurm, local, gke, several = fork_commands(
    [
      ('submit', ['--to=slurm', *words]),
      ('submit', ['--to=local', *words]),
      ('submit', ['--to=gke', '--chip=h100', '--option=image=i', *words]),
      ('submit', ['--to=slurm', '--chip=h100', '--devices=8', *words]),
    ]
  )
  assert slurm.code == local.code == 0, slurm.err + local.err
  assert '#SBATCH --array=0-2' in slurm.out
  assert '#SBATCH --ntasks-per-node=1' in slurm.out
  command = f'launch.study {study} --workdir={tmp_path}/s ;;'
  assert slurm.out.count(command) == 3
  assert f'launch.study {study} --workers=3 --workdir=' in local.out
  assert 'STEEPEST_PROCESSES' not in local.out
  assert 'must share the workdir' in gke.err
  assert 'trains on one' in several.err


def test_a_missing_program_is_named(fork_commands, tmp_path):
  commands = [
    ('submit', [*words, '--nocheck', f'--workdir={tmp_path}/it', _TINY])
    for words in (
      ['--to=slurm'],
      ['--to=gke', '--option=image=i', '--chip=h100'],
      ['--to=xmanager'],
      [
        '--to=tpu-vm',
        '--option=project=p',
        '--option=zone=z',
        '--chip=v5e',
        '--devices=4',
      ],
    )
  ]
  results = fork_commands(commands, PATH='/nowhere')
  programs = ('sbatch', 'kubectl', 'xmanager', 'gcloud')
  for result, program in zip(results, programs, strict=True):
    assert result.code == 1
    assert f'no {program} here' in result.err and '--dry_run' in result.err
  assert not any(tmp_path.iterdir())


def test_mistakes_end_with_a_line(fork_commands):
  cases = [
    (['--to=slurm', _GPT2, '--option=partition'], 'give KEY=VALUE'),
    (
      ['--to=gke', _GPT2, '--chip=h100', '--option=imag=x'],
      'did you mean image',
    ),
    (
      ['--to=slurm', _GPT2, '--sweep=optimizer.rl=1'],
      'did you mean optimizer.lr',
    ),
    (['--to=slurm', _GPT2, '--env=WANDB_API_KEY=1'], 'secrets do not belong'),
    (['--to=slurm', _GPT2, '--devices=8'], 'of which --chip?'),
    (['--to=slurm', _GPT2, '--chip=tpu'], '--chip=tpu: there are h100'),
    ([_GPT2], 'give --to=local|slurm'),
    (
      ['--to=slurm', _GPT2, '--chip=v5e', '--config.microbatches=1'],
      'does not fit, by',
    ),
  ]
  results = fork_commands(
    [('submit', [*words, '--dry_run']) for words, _ in cases]
  )
  for result, (words, message) in zip(results, cases):
    assert result.code == 1, words
    assert message in result.err, result.err
    assert result.err.count('\n') == 1


@pytest.fixture
def config() -> ConfigDict:
  return ConfigDict(
    {'seed': 0, 'optimizer': {'lr': 0.1, 'betas': (0.9, 0.95), 'name': 'a'}}
  )


def test_a_sweep_is_each_with_each(config):
  points = jobs.sweep(
    config, ['optimizer.lr=1,2e-3', 'optimizer.betas=(0.9, 0.99),(0.8,0.9)']
  )
  assert [values for _, values in points] == [
    {'optimizer.lr': lr, 'optimizer.betas': betas}
    for lr in (1.0, 2e-3)
    for betas in ((0.9, 0.99), (0.8, 0.9))
  ]
  assert points[0][0] == 'optimizer.lr=1.0,optimizer.betas=0.9_0.99'
  # Each is a directory of its own, whatever is in it.
  assert len({name for name, _ in points}) == 4
  for name, _ in points:
    assert pathlib.PurePath(name).name == name


@pytest.mark.parametrize(
  'given, message',
  [
    (['optimizer.lr=a'], 'is no float'),
    (['seed=1.5'], 'is no int'),
    (['seed='], 'give KEY=VALUE'),
    (['seed=1,1'], 'given twice'),
    (['seed=1', 'seed=2'], 'stands in two sweeps'),
    (['optimizer.betas=9'], 'is no tuple'),
    (['sed=1'], 'did you mean seed'),
  ],
)
def test_sweeps_that_make_no_sense_are_refused(config, given, message):
  with pytest.raises(ValueError, match=message):
    jobs.sweep(config, given)


@pytest.mark.parametrize(
  'text, name',
  [
    ('gpt2-124m-lion', 'gpt2-124m-lion'),
    ('GPT2_124m (lion)!', 'gpt2-124m-lion'),
    ('7b', 'run-7b'),
    ('-' * 80 + 'a' * 80, 'a' * 40),
    ('', 'run'),
  ],
)
def test_names_are_ones_that_every_place_takes(text, name):
  assert jobs.name_of(text) == name


def test_the_environment_takes_no_secrets():
  assert jobs.environment(['A=b=c', 'D=']) == {'A': 'b=c', 'D': ''}
  for name in ('HF_TOKEN', 'AWS_SECRET', 'PASSWORD', 'my_api_key'):
    with pytest.raises(ValueError, match='secrets do not belong') as error:
      jobs.environment([f'{name}=hunter2'])
    assert 'hunter2' not in str(error.value)
  with pytest.raises(ValueError, match='give NAME=VALUE'):
    jobs.environment(['a b=c'])
