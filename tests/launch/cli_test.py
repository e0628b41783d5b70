"""Commands answer --help, and wrong input ends in one line."""

import os
import pathlib

import pytest

from steepest.data import locks

_ROOT = pathlib.Path(__file__).parent.parent.parent
_COMMANDS = sorted(
  p.stem
  for p in (_ROOT / 'launch').glob('*.py')
  if 'cli.run(' in p.read_text('utf-8') and p.stem != 'cli'
)
_TINY = '--config=experiments/tiny.py:gpt2,adamw'
_DATA = '--config.data.source=flat:tests/golden/tokens.npy'
_HF = '--config.model.init_from=hf:tests/golden'

# Arguments, and what the line must say.
_WRONG = [
  ([], '--config is missing'),
  ([_TINY, _DATA, 'stray'], "'stray'"),
  ([_TINY, _DATA, '--workdir=a\x1b[31m'], 'a control character'),
  ([_TINY, _DATA, '--workdri=x'], 'workdir'),
  (['--config=experiments/tinny.py'], 'did you mean experiments/tiny.py'),
  (['--config=nowhere.py'], 'no recipe nowhere.py'),
  (['--config=experiments/tiny.py:gtp2'], "did you mean 'gpt2'"),
  (['--config=experiments/tiny.py:gpt2,llama'], '2 models, gpt2, llama'),
  (
    ['--config=experiments/tiny.py:gpt2,adamw,lion'],
    '2 optimizers, adamw, lion: give one',
  ),
  ([_TINY, '--config.optimizer.lrr=1'], 'did you mean optimizer.lr?'),
  ([_TINY, '--config.lr=1'], 'did you mean optimizer.lr?'),
  ([_TINY, '--config.modell.width=1'], 'did you mean model.width?'),
  ([_TINY, '--config.steps=many'], "'many'"),
  ([_TINY, '--config.steps=1.5'], "'1.5'"),
  ([_TINY, '--config.optimizer.lr=high'], "'high'"),
  ([_TINY, '--config.data.shuffle=perhaps'], 'perhaps'),
  ([_TINY, _DATA, '--config.optimizer.betas=0.9'], 'give two numbers'),
  ([_TINY, _DATA, '--config.steps=0'], 'steps=0: must be at least 1'),
  ([_TINY, _DATA, '--config.log_every=0'], 'log_every=0'),
  ([_TINY, _DATA, '--config.seed=-1'], 'seed=-1'),
  ([_TINY, _DATA, '--config.stage=last'], 'tune or final'),
  (
    [_TINY, _DATA, '--config.parametrization.base_width=-4'],
    'parametrization.base_width=-4',
  ),
  ([_TINY, '--config.data.source='], 'shards:DIR or flat:FILE'),
  ([_TINY, '--config.data.source=flat:gone.npy'], 'gone.npy'),
  ([_TINY, '--config.data.source=shards:gone'], 'gone'),
  ([_TINY, _DATA, '--config.model.vocab_size=100'], 'token id'),
  ([_TINY, _DATA, '--config.steps=100000'], 'raise data.epochs'),
  ([_TINY, _DATA, '--config.optimizer.name=adamv'], "did you mean 'adamw'"),
  ([_TINY, _DATA, '--config.model.name=gpt3'], "did you mean 'gpt2'"),
  ([_TINY, _DATA, '--config.optimizer.decay_mode=no'], 'times_lr'),
  ([_TINY, _DATA, '--config.schedule.kind=cosin'], 'cosine'),
  ([_TINY, _DATA, '--config.model.num_heads=5'], 'num_heads=5'),
  ([_TINY, _DATA, '--config.microbatches=3'], 'the next one is 9'),
  ([_TINY, _DATA, '--config.mesh.fsdp=3'], 'do not divide'),
  ([_TINY, _DATA, '--config.mesh.data=2'], 'needs 2 devices, there are 1'),
  ([_TINY, _DATA, '--config.dtype.compute=float16'], 'bfloat16'),
  ([_TINY, _DATA, '--config.eval_tasks=arc_easy'], 'needs a tokenizer'),
  ([_TINY, _DATA, '--config.model.init_from=gone'], 'give hf:DIR'),
  ([_TINY, _DATA, '--config.model.init_from=hf:gone'], 'config.json'),
  ([_TINY, _DATA, f'{_HF}/gpt2', '--config.model.width=32'], 'disagrees'),
  ([_TINY, _DATA, f'{_HF}/gpt2', '--config.model.context=99'], 'disagrees'),
  (
    [_TINY, _DATA, f'{_HF}/llama', '--config.model.norm_eps=0.1'],
    'which has 1e-06',
  ),
]


# Those of other commands; HERE has a model of 32 tokens, a file, an empty and a
# broken directory, and may get none named out.
_MODEL, _OUT = '--model=hf:HERE/model', '--out=HERE/out'
_WRONG_OTHERS = [
  ('bench', ['--config=experiments/gpt2_124m.py:adamw'], 'give --plan'),
  (
    'bench',
    ['--plan', '--config=experiments/gpt2_124m.py:adamw', '--chip=b52'],
    '--chip=b52: there are h100, h200, a100, v5e, v5p, v6e',
  ),
  ('coordcheck', ['--widths=32,128'], '--out'),
  ('coordcheck', ['--widths=64,32', _OUT], 'increasing'),
  ('coordcheck', ['--widths=12,24', _OUT], 'multiple'),
  ('coordcheck', ['--model=bert', _OUT], 'bert'),
  ('evaluate', ['--tasks=arc_easy'], '--model is missing'),
  ('evaluate', ['--model=hf:x', '--tasks=arc_easy'], '--out is missing'),
  ('evaluate', [_MODEL, _OUT], 'give --tasks'),
  ('evaluate', [_MODEL, _OUT, '--tasks=arc_eazy'], "did you mean 'arc_easy'?"),
  (
    'evaluate',
    [_MODEL, _OUT, '--tasks=./gone.py'],
    'file ./gone.py: no such file',
  ),
  ('evaluate', [_MODEL, _OUT, '--tasks=mmlu', '--limit=-1'], 'limit'),
  ('evaluate', ['--model=hf:none', _OUT, '--tasks=piqa', '--data=.'], 'none'),
  (
    'evaluate',
    [_MODEL, _OUT, '--tasks=piqa', '--data=HERE/empty'],
    'no piqa.jsonl',
  ),
  ('export', [], '--model is missing'),
  ('export', [_MODEL], '--out is missing'),
  ('export', [_MODEL, '--out=HERE/file'], 'is a file'),
  ('export', ['--model=ckpt:gone', _OUT], 'no config.json'),
  ('generate', [], '--model is missing'),
  ('generate', ['--model=hf:gone'], 'no gone/config.json'),
  ('generate', [_MODEL, '--tokens=0'], 'tokens'),
  ('generate', [_MODEL, '--top_p=2'], 'top_p'),
  ('generate', [_MODEL, '--temperature=-1'], 'temperature'),
  ('generate', [_MODEL, 'the cat'], "unexpected argument 'the cat'"),
  (
    'generate',
    [_MODEL, f'--prompt={"x" * 99}'],
    'a prompt has 99 tokens, the model takes at most 32: shorten it',
  ),
  ('prepare', [], '--input is missing'),
  (
    'prepare',
    ['--input=x*', '--tokenizer=gpt2', _OUT],
    "matches --input='x*'",
  ),
  ('prepare', ['--describe=HERE/empty'], 'no manifest.json'),
  ('report', [_OUT], '--runs is missing'),
  ('report', [_OUT, '--compare=HERE/a'], 'takes two directories, there are 1'),
  ('report', [_OUT, '--runs=HERE/gone'], 'no such directory'),
  ('report', [_OUT, '--runs=HERE/empty'], 'no run in it'),
  ('report', [_OUT, '--runs=HERE/broken'], 'config.json: not valid JSON'),
  # Where to write comes first: a report may take minutes.
  (
    'report',
    ['--runs=HERE/broken', '--out=HERE/file/report'],
    'file/report: not a directory',
  ),
  ('study', ['--config=experiments/tiny.py'], 'not a study'),
  ('watch', ['--once'], 'give their directories'),
  ('watch', ['HERE/gone', '--once'], 'no such directory'),
]


@pytest.fixture(scope='module')
def ended(fork_commands, write_model, tmp_path_factory):
  """What each of the wrong command lines ended with, and each --help."""
  here = tmp_path_factory.mktemp('wrong')
  write_model(here / 'model', 'llama', 'the cat sat', 270, context=32)
  (here / 'file').write_text('')
  (here / 'empty').mkdir()
  (here / 'broken').mkdir()
  (here / 'broken' / 'config.json').write_text('{')
  (here / 'broken' / 'metrics.jsonl').write_text('')
  before = sorted(here.rglob('*'))
  commands = [
    ('train', [*arguments, f'--workdir={here / str(i)}'])
    for i, (arguments, _) in enumerate(_WRONG)
  ]
  for name, arguments, _ in _WRONG_OTHERS:
    commands.append((name, [a.replace('HERE', str(here)) for a in arguments]))
  commands += [(name, ['--help']) for name in _COMMANDS]
  results = fork_commands(commands)
  assert sorted(here.rglob('*')) == before
  return results


_SAID = [said for *_, said in (*_WRONG, *_WRONG_OTHERS)]


def test_wrong_input_ends_in_one_line(ended):
  # One test, or several workers would run all of the commands.
  others = [
    (said, result)
    for said, result in zip(_SAID, ended)
    if result.code != 1
    or len(result.err.splitlines()) != 1
    or not result.err.startswith('error: ')
    or said not in result.err
  ]
  assert not others


def test_help(ended):
  for name, result in zip(_COMMANDS, ended[len(_SAID) :], strict=True):
    assert (result.code, result.err) == (0, '')
    assert f'python -m launch.{name}' in result.out
    assert 'Flags:' in result.out


def test_traceback_on_request(run_command):
  done = run_command('train', '--config=gone.py', STEEPEST_TRACEBACK='1')
  assert done.returncode == 1
  assert 'Traceback' in done.stderr
  assert done.stderr.splitlines()[-1] == 'error: no recipe gone.py'


def test_a_directory_has_one_writer(fork_commands, tmp_path):
  commands = {
    'train': [_TINY, _DATA, f'--workdir={tmp_path}'],
    'report': [f'--runs={tmp_path}', f'--out={tmp_path}'],
    'evaluate': ['--model=hf:gone', '--tasks=mmlu', f'--out={tmp_path}'],
    'coordcheck': ['--model=gpt2', '--optimizer=lion', f'--out={tmp_path}'],
  }
  with locks.hold(tmp_path, 'at work'):
    results = fork_commands(list(commands.items()))
    assert [path.name for path in tmp_path.iterdir()] == [locks.NAME]
  for result in results:
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert f'(process {os.getpid()}, ' in line
