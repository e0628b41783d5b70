"""Runs in this process: restarts, warm starts, reading models back."""

import json
import pathlib
import shutil

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from steepest.data import tokenizers
from steepest.experiments import tiny
from steepest.models import llama
from steepest.training import attempt, loading, run as assemble, step


@pytest.fixture
def configure(golden):
  """Returns a function that makes a configuration of one small layer."""

  def fn(variant, **keys):
    config = tiny.get_config(variant)
    given = {key.replace('__', '.'): value for key, value in keys.items()}
    config.update_from_flattened_dict(
      {
        'data.source': f'flat:{golden / "tokens.npy"}',
        'mesh.data': 1,
        'model.num_layers': 1,
        'model.width': 32,
        'model.context': 16,
        'model.vocab_size': 128,
        'schedule.kind': 'constant',
        'schedule.warmup_steps': 1,
        'optimizer.hessian_every': 2,
        'steps': 6,
        'checkpoint_every': 3,
        **given,
      }
    )
    return config

  return fn


# The second one's program is that of the tests below, and compiled once.
@pytest.mark.parametrize('variant', ['gpt2,sophia', 'gpt2,lion'])
def test_k_steps_and_k_more_are_2k_steps(
  configure, tmp_path, check_same, variant
):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  assemble.train(configure(variant), whole)
  assemble.train(configure(variant, steps=3), parts)
  summary, ended = parts / 'summary.json', []
  assert summary.exists()
  found = assemble.train(
    configure(variant), parts, on_row=lambda row: ended.append(summary.exists())
  )
  check_same(parts, whole, 6)
  # While it goes on, no summary says that it has ended.
  assert ended == [False] * 3 and summary.exists()
  assert found['curvature_passes'] == (3 if 'sophia' in variant else 0)


def test_an_attempt_stops_once_another_has_the_run(
  configure, tmp_path, check_same
):
  """A machine was cut off, its run was done elsewhere, and it is back."""
  whole, run = tmp_path / 'whole', tmp_path / 'run'
  assemble.train(configure('gpt2,lion'), whole)
  left = []

  def files():
    # Each attempt has TensorBoard events of its own.
    kept = (p for p in run.rglob('*') if 'tfevents' not in p.name)
    return {p: p.read_bytes() for p in kept if p.is_file()}

  def meanwhile(row):
    if row['step'] == 4:
      assemble.train(configure('gpt2,lion'), run)
      left.append(files())

  with pytest.raises(attempt.Superseded, match='run: attempt 2 has taken'):
    assemble.train(configure('gpt2,lion'), run, on_row=meanwhile)
  assert left == [files()]
  check_same(run, whole, 6)


def test_a_run_whose_directory_is_removed_stops(configure, tmp_path):
  with pytest.raises(attempt.Superseded, match='env.json is gone: was the'):
    assemble.train(
      configure('gpt2,lion'),
      tmp_path / 'run',
      on_row=lambda row: shutil.rmtree(tmp_path / 'run'),
    )
  assert not (tmp_path / 'run').exists()


def test_what_failed_before_its_first_row_binds_nothing(configure, tmp_path):
  def fail(steps):
    raise RuntimeError('out of memory')

  with pytest.raises(RuntimeError):
    assemble.train(configure('gpt2,lion'), tmp_path / 'run', stop=fail)
  assert (tmp_path / 'run' / 'config.json').exists()
  other = configure('gpt2,lion', steps=2, seed=1)
  assert assemble.train(other, tmp_path / 'run')['steps'] == 2


def test_a_run_older_than_a_key_goes_on(configure, tmp_path):
  path = tmp_path / 'run' / 'config.json'
  assemble.train(configure('gpt2,lion', steps=3), path.parent)
  saved = json.loads(path.read_text())
  del saved['optimizer']['decay_mode'], saved['microbatches']
  path.write_text(json.dumps(saved))
  assert assemble.train(configure('gpt2,lion'), path.parent)['steps'] == 6
  saved['optimizer']['decay_mode'] = 'times_lr'
  path.write_text(json.dumps(saved))
  with pytest.raises(ValueError, match='decay_mode=times_lr'):
    assemble.train(configure('gpt2,lion'), path.parent)


def test_sophias_extra_passes_count_as_flops(configure, tmp_path):
  found = {}
  for name in ('lion', 'sophia'):
    config = configure(f'gpt2,{name}', checkpoint_every=0)
    found[name] = assemble.train(config, tmp_path / name)
  # Three of the six steps take a second gradient.
  assert found['sophia']['flops'] / found['lion']['flops'] == pytest.approx(1.5)
  config = configure(
    'gpt2,sophia', checkpoint_every=0, optimizer__hessian_subset=4
  )
  part = assemble.train(config, tmp_path / 'part')
  assert part['curvature_passes'] == found['sophia']['curvature_passes'] == 3
  assert part['flops'] / found['lion']['flops'] == pytest.approx(1.125)
  # A momentum for Lion, a curvature beside it for Sophia, and a few counters.
  for name, moments in (('lion', 1), ('sophia', 2)):
    held = found[name]['optimizer_state_bytes']
    floats = 4 * moments * found[name]['parameters']
    assert floats <= held <= floats + 64


def test_the_operation_that_makes_a_nan_is_named(
  configure, tmp_path, monkeypatch
):
  real = step.training_loss

  def training_loss(logits, part, z_loss):
    loss, terms = real(logits, part, z_loss)
    return jnp.sqrt(loss - 100), terms

  monkeypatch.setattr(step, 'training_loss', training_loss)
  wanted = r'invalid value \(nan\) encountered in sqrt at .*run_test.py:\d+: '
  with pytest.raises(FloatingPointError, match=wanted):
    config = configure('gpt2,lion', debug_nans=True, eval_sequences=0)
    assemble.train(config, tmp_path)
  assert not jax.config.jax_debug_nans


def test_layers_are_stacked_from_one_restart_to_the_next(
  configure, tmp_path, computed, saved
):
  """And taken apart again, to be read and to go on."""
  tokenizer = tokenizers.train_bpe(iter(['some text of no weight'] * 9), 270)
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  run = lambda where, steps, stacked=False: assemble.train(
    configure(
      'llama,muon',
      model__vocab_size=tokenizer.vocab_size,
      model__num_layers=2,
      model__scan_layers=stacked,
      steps=steps,
      checkpoint_every=2,
    ),
    where,
  )
  run(whole, 6)
  run(parts, 2)
  run(parts, 4, stacked=True)
  tokenizer.save(parts)
  got = loading.load_model(f'ckpt:{parts}').params
  kernels = saved(parts, 4)["['params']['block_all']['query']['kernel']"]
  for i in range(2):
    held = got[f'block_{i}']['query']['kernel']
    np.testing.assert_array_equal(held, kernels[i])
  run(parts, 6)
  for row, other in zip(computed(whole), computed(parts), strict=True):
    assert row.keys() == other.keys()
    for key, value in row.items():
      assert other[key] == pytest.approx(value, rel=1e-3, abs=1e-6), key


def test_an_imported_model_is_its_own_base(
  configure, golden, tmp_path, computed, logits_of, write_model
):
  """The recipe's base width is 64: no factor of µP may touch the import.

  Of the model's 24 positions the run takes the first 16.
  """
  shapes = {'width': 32, 'context': 24, 'scale': 9.0}
  directory = write_model(tmp_path / 'hf', 'gpt2', 'text', 262, **shapes)
  spec = f'hf:{directory}'
  config = configure('gpt2,adamw', steps=1, data__shuffle=False)
  assert config.parametrization.base_width == 64
  config.model.init_from = spec
  said = {'model.context': 16}
  assemble.train(config, tmp_path / 'run', overrides=said)
  loaded = loading.load_model(spec)
  tokens = np.load(golden / 'tokens.npy')[: 8 * 16 + 1].astype(np.int32)
  logits = logits_of(loaded, tokens[:-1].reshape(8, 16))
  losses = -jax.nn.log_softmax(logits).reshape(8 * 16, -1)
  wanted = losses[np.arange(8 * 16), tokens[1:]].mean()
  (row,) = computed(tmp_path / 'run')
  assert row['train/loss'] == pytest.approx(float(wanted), rel=1e-5)


def test_a_model_file_outside_trains_as_inside(configure, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(pathlib.Path(llama.__file__).read_text('utf-8'), 'utf-8')
  losses = [
    assemble.train(
      configure('llama,adamw', model__name=name, steps=2), tmp_path / run
    )['train_loss']
    for run, name in (('inside', 'llama'), ('outside', str(path)))
  ]
  assert losses[0] == losses[1]


def test_a_trained_model_is_read_back(configure, tmp_path, saved, logits_of):
  workdir = tmp_path / 'run'
  tokenizer = tokenizers.train_bpe(iter(['some text of no weight'] * 9), 270)
  config = configure('llama,adamw', model__vocab_size=tokenizer.vocab_size)
  assemble.train(config, workdir)
  with pytest.raises(FileNotFoundError, match=r'no tokenizer\.json'):
    loading.load_model(f'ckpt:{workdir}')
  tokenizer.save(workdir)
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  loaded = loading.load_model(f'ckpt:{workdir}')
  assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  assert loaded.description['steps'] == 6
  assert loaded.max_length == 16
  assert loaded.tokenizer.sha256 == tokenizer.sha256
  arrays = saved(workdir, 6)
  for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params):
    held = arrays[f"['params']{jax.tree_util.keystr(path)}"]
    np.testing.assert_array_equal(leaf, held)
  logits = logits_of(loaded, np.zeros((1, 5), np.int32))
  assert logits.shape == (1, 5, tokenizer.vocab_size)
  assert np.isfinite(logits).all()
  # One of a larger machine is read here.
  config = json.loads((workdir / 'config.json').read_text('utf-8'))
  config['mesh'] |= {'data': 2, 'fsdp': 16, 'tensor': 3}
  (workdir / 'config.json').write_text(json.dumps(config), 'utf-8')
  got = loading.load_model(f'ckpt:{workdir}').params
  jax.tree.map(np.testing.assert_array_equal, got, loaded.params)
  kernel = got['block_0']['query']['kernel']
  assert not kernel.sharding.is_fully_replicated
  shutil.rmtree(workdir / 'checkpoints')
  with pytest.raises(FileNotFoundError, match='no complete checkpoint'):
    loading.load_model(f'ckpt:{workdir}')


@pytest.mark.parametrize(
  'spec, said',
  [
    ('gone', 'give hf:DIR or ckpt:WORKDIR'),
    ('ckpt:', 'give hf:DIR or ckpt:WORKDIR'),
    ('ckpt:gone', 'no config.json, so it is no run'),
    ('hf:gone', 'no gone/config.json'),
  ],
)
def test_models_that_are_not_there(spec, said):
  with pytest.raises((ValueError, FileNotFoundError), match=said):
    loading.load_model(spec)
