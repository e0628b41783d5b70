"""What a stranger does first: a wheel, a text and a recipe of their own."""

import json

_RECIPE = '''"""A study of mine."""

from steepest.experiments import base


def get_config():
  config = base.get_study_config()
  config.data.source = 'shards:shards'
  config.model.num_layers, config.model.width = 1, 16
  config.model.num_heads, config.model.context = 1, 16
  config.batch_size, config.steps = 4, 4
  config.checkpoint_every = 0
  config.eval_sequences = 4
  study = config.study
  study.models, study.optimizers = 'gpt2', 'adamw'
  study.trials, study.seeds, study.target_steps = 2, 1, 4
  study.max_extensions = 50
  return config
'''


def test_a_study_of_an_own_recipe_is_submitted_from_a_wheel(
  installed, fork_commands, tmp_path
):
  """In the user's directory, where the recipe and the data are."""
  import email.message

  (tmp_path / 'mine.py').write_text(_RECIPE, 'utf-8')
  source = email.message.__file__
  prepare = [f'--input={source}', '--out=shards', '--tokenizer=bpe-train:300']
  submit = ['--to=local', '--config=mine.py', '--workdir=runs/mine']
  gone = '--config.data.source=shards:gone'
  commands = [
    ('prepare', prepare),
    ('submit', [*submit, gone, '--dry_run']),
    ('submit', [*submit, '--to=sky', '--dry_run']),
    ('submit', [*submit, '--to=sky', '--dry_run', '--option=install=x.whl']),
    ('submit', [*submit, '--', '--workers=1']),
  ]
  _, missing, sky, sent, done = fork_commands(
    commands, str(installed), tmp_path
  )
  assert missing.err == (
    f'error: data.source=shards:gone: {tmp_path}/gone/manifest.json does not '
    'exist; --nocheck submits it anyway\n'
  )
  assert 'this is an installation' in sky.err
  assert f'workdir: {tmp_path}\n' in sent.out
  assert 'setup: pip install x.whl\n' in sent.out
  assert done.code == 0, done.err
  assert 'site-packages' not in sent.out + done.out
  report = tmp_path / 'runs' / 'mine' / 'report'
  assert 'AdamW' in (report / 'report.md').read_text('utf-8')
  [final] = (tmp_path / 'runs' / 'mine' / 'finals').rglob('env.json')
  assert json.loads(final.read_text())['versions']['steepest'] == '9.8.7'
