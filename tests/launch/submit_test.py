"""`python -m launch.submit` as its users meet it."""

import pathlib
import re

from ml_collections import ConfigDict
import pytest

from steepest.launch.submitters import job as jobs

_TINY = '--config=experiments/tiny.py:gpt2,adamw'
_GPT2 = '--config=experiments/gpt2_124m.py:lion'
_DATA = '--config.data.source=flat:tests/golden/tokens.npy'
_CHIPS = ('--chip=h100', '--devices=16')


_STUDY = '--config=experiments/quickstart.py'
_DRY_RUNS = {
  'slurm': ['--to=slurm', '--sweep=seed=0,1'],
  'xmanager': ['--to=xmanager'],
  'sky': ['--to=sky'],
  'tpu': ['--to=xmanager', '--chip=v6e'],
}
_STUDIES = {
  'slurm study': ['--to=slurm'],
  'local study': ['--to=local'],
  'short study': ['--to=slurm', '--minutes=45'],
  'large study': ['--to=slurm', '--chip=h100', '--nodes=4'],
  'wide study': ['--to=sky', '--chip=h100', '--devices=16'],
  'pod study': ['--to=sky', '--chip=v5p', '--devices=64'],
}
_MISSING = {
  'sbatch': ['--to=slurm'],
  'xmanager': ['--to=xmanager'],
  'sky': ['--to=sky'],
}
_MISTAKES = {
  'give KEY=VALUE': ['--to=slurm', _GPT2, '--option=partition'],
  'did you mean image': ['--to=xmanager', _GPT2, '--option=imag=x'],
  'did you mean partition?': ['--to=slurm', _GPT2, '--option=partion=gpu'],
  'did you mean use_spot?': ['--to=sky', _GPT2, '--option=usespot=true'],
  '--to=xmanager has h100, h200, a100, v5e, v5p, v6e; did you mean h200?': [
    *('--to=xmanager', _GPT2, '--chip=B200')
  ],
  'did you mean rtx4090?': ['--to=slurm', _GPT2, '--chip=RTX4909'],
  'did you mean optimizer.lr': [
    *('--to=slurm', _GPT2, '--sweep=optimizer.rl=1')
  ],
  'secrets do not belong': ['--to=slurm', _GPT2, '--env=WANDB_API_KEY=1'],
  'a run has --hours': ['--to=slurm', _GPT2, '--minutes=9'],
  'give their --chip': ['--to=slurm', _GPT2, '--devices=8'],
  '--chip=tpu: there are h100': ['--to=slurm', _GPT2, '--chip=tpu'],
  'give --to=local|slurm': [_GPT2],
  'does not fit, by': [
    *('--to=slurm', _GPT2, _DATA, '--chip=v5e', '--config.microbatches=1')
  ],
  'gpt2/manifest.json does not exist; --nocheck submits': [
    *('--to=slurm', _GPT2)
  ],
  'data.source=: nothing to train on': ['--to=local', _TINY],
  'model.init_from=hf:gone: /': [
    *('--to=files', _TINY, _DATA, '--config.model.init_from=hf:gone')
  ],
}


# Secrets that a user of a laptop may have around.
_SECRETS = ('WANDB_API_KEY', 'HF_TOKEN', 'AWS_SECRET_ACCESS_KEY')
_HUNTER = 'hunter2-0123456789'


@pytest.fixture(scope='module')
def submitted(fork_commands, tmp_path_factory):
  """What each command said, and the directory that all were given."""
  folder = tmp_path_factory.mktemp('submit')
  workdir = f'--workdir={folder}/it'
  # Two layers are traced sooner than twelve.
  small = ('--config.model.num_layers=2', '--config.optimizer.lr=1e-4')
  large = [_GPT2, _DATA, *_CHIPS, workdir, *small, '--dry_run']
  study = [_STUDY, '--processes=3', workdir, '--dry_run']
  local = ['--to=local', _TINY, _DATA, workdir, '--processes=2', '--dry_run']
  commands = {
    'local': local,
    # Later flags count.
    **{name: [*large, *words] for name, words in _DRY_RUNS.items()},
    **{name: [*study, *words] for name, words in _STUDIES.items()},
    **{
      f'no {name} here': [*words, workdir, _TINY, _DATA]
      for name, words in _MISSING.items()
    },
    **{name: [*words, '--dry_run'] for name, words in _MISTAKES.items()},
  }
  results = fork_commands(
    [('submit', words) for words in commands.values()],
    PATH='/nowhere',
    **dict.fromkeys(_SECRETS, _HUNTER),
  )
  return dict(zip(commands, results)), folder


def test_dry_runs_print_all_and_leave_nothing(submitted):
  results, folder = submitted
  for name in ('local', *_DRY_RUNS):
    assert results[name].code == 0, results[name].err
  for name in _DRY_RUNS:
    out = results[name].out
    assert 'mesh data=16 fsdp=1 tensor=1 sequence=1; ' in out
    assert ' h\n' in out
    assert '--config.optimizer.lr=0.0001' in out
  slurm, local = results['slurm'].out, results['local'].out
  # Other machines' files cannot be seen from here.
  unseen = '# read there, not checked from here: data.source=flat:tests'
  assert unseen in results['sky'].out and unseen not in slurm
  assert '# seed=1: mesh' in slurm and '#SBATCH --array=0-1' in slurm
  assert '# no plan: no accelerator' in local
  # Without it JAX takes three quarters of a GPU's memory.
  for name in ('slurm', 'xmanager'):
    assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' in results[name].out
  assert local.count('-m steepest.launch.train') == 2
  assert not any(folder.iterdir())


def test_no_secret_is_printed_or_submitted(submitted):
  for result in submitted[0].values():
    assert _HUNTER not in result.out + result.err


@pytest.mark.slow
@pytest.mark.parametrize(
  'words',
  [['--to=local', '--chip=h100'], *_DRY_RUNS.values()],
  ids=['local', *_DRY_RUNS],
)
def test_the_papers_target_on_64_devices(run_command, tmp_path, words):
  """Mesh, machines and hours from the plan, whatever the place."""
  done = run_command(
    'submit',
    '--config=experiments/paper_target.py:llama,sophia,single',
    _DATA,
    '--config.model.vocab_size=50304',
    '--chip=h100',
    f'--workdir={tmp_path}/paper',
    *words,
    '--devices=64',
    '--dry_run',
  )
  assert done.returncode == 0, done.stderr
  each, plan = (
    next(x for x in done.stdout.splitlines() if x.startswith(begin))
    for begin in ('# each: ', ('# plan: ', '# seed=0: '))
  )
  sizes = r'# each: 64 × \w+, machines: (\d+) of (\d+), processes: (\d+)'
  machines, each_has, processes = map(int, re.fullmatch(sizes, each).groups())
  assert machines * each_has == 64
  of_device = {'--to=slurm', '--to=local'} & set(words)
  assert processes == (64 if of_device else machines)
  assert ': mesh data=8 fsdp=8 tensor=1 sequence=1; ' in plan
  assert 1 < float(plan.split()[-2]) < 1000 and plan.endswith(' h')
  assert not (tmp_path / 'paper').exists()


def test_a_study_is_one_process_a_machine(submitted):
  results, folder = submitted
  slurm, local, short, large, wide, pod = (results[name] for name in _STUDIES)
  assert slurm.code == local.code == 0, slurm.err + local.err
  assert '#SBATCH --array' not in slurm.out
  assert '#SBATCH --ntasks-per-node=1' in slurm.out
  for dry_run in (slurm, local):
    assert f'launch.study {_STUDY} --workers=3 --workdir=' in dry_run.out
  assert 'STEEPEST_PROCESSES' not in local.out
  # Its own time, and a quarter of an hour around it.
  assert '#SBATCH --time=1:00:00\n' in short.out
  assert ' --workers=3 --minutes=45.0 --workdir=' in short.out
  # A Ray, and a task on each machine.
  assert '#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=1\n' in large.out
  assert '#SBATCH --gpus-per-node=8\n' in large.out
  assert large.out.count('"$@" --engine="$FIRST"') == 1
  assert 'RAY_AUTH_MODE' not in slurm.out
  assert wide.out.count('"$@" --engine="$FIRST"') == 1
  assert 'num_nodes: 2' in wide.out and '[cuda,ray]' in wide.out
  assert 'a study takes one TPU machine, not 16' in pod.err


def test_what_is_missing_and_what_is_mistaken_is_named(submitted):
  results, folder = submitted
  for program in _MISSING:
    result = results[f'no {program} here']
    assert result.code == 1
    assert f'no {program} here' in result.err and '--dry_run' in result.err
  for message in _MISTAKES:
    result = results[message]
    assert result.code == 1 and message in result.err, message
    assert result.err.count('\n') == 1, message
  assert not any(folder.iterdir())


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
    (['optimizer.lr=a'], 'is not of type float'),
    (['seed=1.5'], 'is not of type int'),
    (['seed='], 'give KEY=VALUE'),
    (['seed=1,1'], 'given twice'),
    (['seed=1', 'seed=2'], 'two sweeps have the same key'),
    (['optimizer.betas=9'], 'is not of type tuple'),
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
