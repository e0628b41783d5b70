"""Plans against closed forms, what compilers say, and what was measured."""

import math

import jax
from ml_collections import ConfigDict
import pytest

from steepest.experiments import base, paper_study, paper_target
from steepest.models import config as model_config
from steepest.training import chips, run as run_lib, state as state_lib
from steepest.tuning import cells, plan, search, stages

_GPT2_124M = {'model.vocab_size': 50_304, 'batch_size': 64}
_GPT2_3B = {
  'model.num_layers': 32,
  'model.width': 2560,
  'model.num_heads': 32,
  'model.context': 2048,
  'model.vocab_size': 50_304,
  'batch_size': 4,
}
_LLAMA_3B = {
  **_GPT2_3B,
  'model.num_heads': 20,
  'model.mlp_dim': 6912,
  'model.vocab_size': 32_000,
}
# experiments/paper_target.py, on 64 devices.
_TARGET = {
  'batch_size': 256,
  'mesh.fsdp': 8,
  'mesh.data': 8,
  'microbatches': 4,
  'model.remat': 'full',
  'model.scan_layers': True,
}
_MODELS = {
  '124M': ('gpt2,adamw', _GPT2_124M),
  '2.65B': ('gpt2,adamw', _GPT2_3B),
  'LLaMA 2.7B': ('llama,adamw', _LLAMA_3B),
}


def _config(variant: str, keys: dict) -> ConfigDict:
  config, _ = base.with_variant(variant)
  config.update_from_flattened_dict({'model.bias': False, **keys})
  return config


def _plan(variant='gpt2,adamw', keys=_GPT2_124M, devices=1, chip='h100'):
  return plan.plan(_config(variant, keys), chips.CHIPS[chip], devices)


def test_parameters_flops_and_seconds_are_those_of_the_closed_forms():
  found = _plan()
  L, D, V, T, B = 12, 768, 50_304, 1024, 64
  parameters = V * D + T * D + L * (12 * D * D + 2 * D) + D
  assert found.memory['parameters'] == 4 * parameters
  per_token = 6 * (parameters - T * D) + 12 * L * D * T
  assert (found.flops, found.tokens) == (per_token * B * T, B * T)
  # The MFU was measured at these shapes; 139.1 ms a step.
  assert found.mfu.share == 0.407
  assert found.seconds == pytest.approx(0.1391, rel=2e-3)
  # A forward pass of the blocks more, and a gradient more in ten steps.
  again = _plan('gpt2,sophia', {**_GPT2_124M, 'model.remat': 'full'})
  blocks = per_token - 6 * V * D
  wanted = found.seconds * (1 + blocks / per_token / 3) * 1.1
  assert again.seconds == pytest.approx(wanted)
  # Five iterations of 2·(2·n·n·m + n·n·n), n the shorter side; AdamW has none,
  # and reads gradients, and reads and writes parameters, two moments, a count.
  muon = _plan('gpt2,muon')
  products = L * (4 * 6 * D**3 + 2 * (4 * 4 * D**3 + 2 * D**3))
  assert muon.update_flops == 5 * products
  assert muon.seconds / found.seconds == pytest.approx(
    1 + 5 * products / found.flops
  )
  assert (found.update_flops, found.update_bytes) == (0, 28 * parameters + 8)


_ONE_LAYER = {'model.num_layers': 1, 'mesh.fsdp': 8}


@pytest.mark.parametrize(
  'devices, keys, wanted, alone',
  [
    (8, _ONE_LAYER, (0.547, 0.547, 0), 0),
    (
      8,
      {**_ONE_LAYER, 'model.num_layers': 2, 'optimizer.name': 'muon'},
      (0.725, 0.725, 0, 0.776),
      0,
    ),
    (
      8,
      {**_ONE_LAYER, 'mesh.fsdp': 2, 'mesh.tensor': 4},
      (0.182, 0.182, 2.014),
      1.007 / 450e9,
    ),
    (64, _ONE_LAYER, (0.547, 0.547, 0.122), 0.081 / 50e9),
    (
      64,
      {**_ONE_LAYER, 'mesh.shard_optimizer_over_data': True},
      (0.684, 0.547, 0.122),
      0.081 / 50e9,
    ),
    (
      64,
      _TARGET,
      (47.15, 24.31, 2.708),
      # Beside half of it the program has updates, which take no time: 1.28.
      2.708 / 50e9,
    ),
  ],
)
def test_devices_send_what_compiled_programs_for_h100s_do(
  devices, keys, wanted, alone
):
  """GB read from them, of LLaMA 2.7B, and those alone (docs/scaling.md).

  These take the time that NVLink has for them, or an adapter of 400 Gb/s.
  """
  keys = {**_LLAMA_3B, 'batch_size': 4 * devices, **keys}
  found = _plan('llama,adamw', keys, devices)
  names = ['gathered', 'scattered', 'reduced', 'exchanged'][: len(wanted)]
  assert list(found.sent) == names
  assert tuple(x / 1e9 for x in found.sent.values()) == pytest.approx(
    wanted, rel=0.01
  )
  assert found.exposed / 1e9 == pytest.approx(alone, rel=0.01)


def test_the_fastest_step_recomputes_only_what_does_not_fit():
  keys = {**_LLAMA_3B, **_TARGET}
  config = _config('llama,adamw', keys)
  simple = {
    'microbatches': 1,
    'model.remat': 'none',
    'model.scan_layers': False,
  }
  changed, found = plan.fastest(config, chips.CHIPS['h100'], 64)
  assert changed == simple
  assert found == _plan('llama,adamw', keys | simple, 64)
  # Where it runs so already, nothing is to be changed.
  config = _config('llama,adamw', keys | simple)
  assert plan.fastest(config, chips.CHIPS['h100'], 64) == ({}, found)
  # In 14.7 GiB, half the batch fits, and recomputation would take longer.
  config = _config('gpt2,adamw', _GPT2_124M | {'batch_size': 512})
  changed, found = plan.fastest(config, chips.CHIPS['v5e'], 8)
  assert changed == {'microbatches': 2} and found.fits
  assert not plan.plan(config, chips.CHIPS['v5e'], 8).fits
  # Parameters and moments alone are larger.
  config = _config('llama,adamw', _LLAMA_3B)
  assert plan.fastest(config, chips.CHIPS['v5e'], 1) is None


_OWN_LOOP = """
from flax import linen as nn
from steepest.models import gpt2, layers
from steepest.models.gpt2 import HABITS, check, default_mlp_dim

class Model(nn.Module):
  config: object
  rules: object

  @nn.compact
  def __call__(self, tokens, segment_ids=None, positions=None, features=False):
    c, rules = self.config, self.rules
    embedding = layers.embedding(self, rules)
    x = layers.look_up(embedding, tokens, c.compute_dtype)
    for i in range(c.num_layers):
      x = gpt2.Block(c, rules, name=f'block_{i}')(x, segment_ids, positions)
    return layers.read_out(self, rules, x, embedding, features)
"""


def test_what_a_model_cannot_do_is_not_proposed(tmp_path):
  path = tmp_path / 'own.py'
  path.write_text(_OWN_LOOP)
  keys = {**_GPT2_124M, 'model.name': str(path), 'microbatches': 2}
  looped = _config('gpt2,adamw', {**keys, 'model.scan_layers': True})
  with pytest.raises(ValueError, match='its own loop'):
    plan.fastest(looped, chips.CHIPS['t4'], 1)
  changed = plan.fastest(_config('gpt2,adamw', keys), chips.CHIPS['rtx4090'], 1)
  assert changed is not None and 'model.scan_layers' not in changed[0]


def test_soap_and_looped_layers_are_as_compiled_for_h100s():
  """Looped layers are gathered in both passes; whole matrices come and go.

  Read from a program for eight H100 (jax 0.11.2). XLA sends some of the
  exchanged gradients in bfloat16.
  """
  keys = {
    'model.num_layers': 8,
    'model.width': 1024,
    'model.num_heads': 8,
    'model.mlp_dim': 4096,
    'model.vocab_size': 8192,
    'model.context': 128,
    'model.scan_layers': True,
    'batch_size': 8,
    'mesh.fsdp': 8,
  }
  found = _plan('llama,soap', keys, 8)
  assert found.sent['gathered'] == pytest.approx(641_728_512, rel=0.01)
  assert found.sent['scattered'] == pytest.approx(339_738_624, rel=0.01)
  assert found.sent['exchanged'] == pytest.approx(1_639_972_864, rel=0.02)
  assert found.peak == pytest.approx(1_606_738_788, rel=0.025)


@pytest.mark.parametrize(
  'optimizer, moments', [('adamw', 2), ('lion', 1), ('sophia', 2)]
)
def test_an_optimizer_takes_its_moments(optimizer, moments):
  memory = _plan(f'gpt2,{optimizer}').memory
  # Counters of steps are a few bytes.
  assert 0 <= memory['optimizer'] - moments * memory['parameters'] < 64


def test_activations_are_the_known_count():
  """Sixteen widths a token and layer, and the statistics of attention.

  Korthikanti et al. (arXiv 2205.05198, section 4.1) count 34 bytes a width
  with dropout, whose masks take two: input and output of both norms, q, k, v,
  attention's output, and 4 + 4 widths inside the MLP.
  """
  tokens, D, H = 64 * 1024, 768, 12
  layer = tokens * (2 * 16 * D + 4 * H)
  # Embeddings as they are looked up, the last norm's input and its output.
  around = tokens * D * (4 + 2 + 2)
  kept = _plan().memory['activations']
  assert 12 * layer < kept <= 12 * layer + around
  # Scores of attention, where no kernel spares them: float32 and bfloat16. The
  # one for TPUs takes whole sequences, cuDNN's takes parts of them.
  keys = {**_GPT2_124M, 'mesh.sequence': 2}
  unfused = 2 * _plan(keys=keys, devices=2, chip='v5p').memory['activations']
  scores = 12 * tokens * 1024 * H * (4 + 2)
  assert unfused == kept + scores - 12 * tokens * 4 * H
  assert 2 * _plan(keys=keys, devices=2).memory['activations'] == kept
  # Layers that are computed again keep their input; `names` spares both norms'
  # outputs and what comes out of the activation.
  memory = _plan(keys={**_GPT2_124M, 'model.remat': 'full'}).memory
  assert 12 * tokens * D * 2 <= memory['activations'] <= 14 * tokens * D * 4
  assert memory['computed again'] + tokens * 2 * D == layer
  memory = _plan(keys={**_GPT2_124M, 'model.remat': 'names'}).memory
  assert kept - memory['activations'] == 12 * tokens * 2 * 6 * D


def test_the_state_is_what_a_device_holds_when_training_begins():
  """The first of the eight devices of the tests."""
  keys = {
    'model.num_layers': 2,
    'model.width': 64,
    'model.num_heads': 4,
    'model.vocab_size': 128,
    'model.context': 16,
    'batch_size': 8,
    'mesh.fsdp': 2,
    'mesh.tensor': 2,
  }
  config = _config('llama,sophia', keys)
  model = model_config.resolve(config.model, 0, config.dtype)
  first = state_lib.init(run_lib.make_setup(config, model), 0)
  size = lambda tree: sum(
    x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)
  )
  planned = _plan('llama,sophia', keys, devices=8)
  # What a checkpoint holds is whole.
  assert planned.checkpoint == sum(x.nbytes for x in jax.tree.leaves(first))
  memory = planned.memory
  assert memory['parameters'] == size(first.params)
  assert memory['optimizer'] == size(first.opt_state)


@pytest.mark.parametrize('name, gigabytes', [('124M', 43.8), ('2.65B', 64.3)])
def test_memory_is_near_that_measured_with_pytorch(name, gigabytes):
  """Whose autocast has float32 where the plan has bfloat16.

  In what norms put out, and in the logits' gradient, which is there beside the
  logits, where XLA writes one over the other.
  """
  config = _config(*_MODELS[name])
  m = model_config.resolve(config.model, 0, config.dtype)
  wider = 2 * (2 * m.num_layers + 1) * m.width + 4 * m.vocab_size
  wider *= config.batch_size * m.context
  peak = plan.plan(config, chips.CHIPS['h100'], 1).peak
  assert (peak + wider) / 1e9 == pytest.approx(gigabytes, rel=0.02)


# Compiled for H100 by jax 0.11.2, CUDA 13 and cuDNN 9.28, commit 829c1fe, with
# AdamW, bfloat16, no biases: GiB a device that `python -m launch.bench` with
# --compile --chip=h100 prints `in all`; experiments/gpt2_124m.py:adamw or, of
# the larger ones, experiments/paper_target.py:MODEL,adamw,single.
_COMPILED = {
  '124M': [
    ({}, 26.07),
    ({'model.remat': 'names'}, 19.31),
    ({'model.remat': 'dots'}, 19.31),
    ({'model.remat': 'full'}, 9.15),
    ({'microbatches': 4}, 8.20),
    ({'microbatches': 4, 'model.remat': 'names'}, 6.54),
    ({'microbatches': 2, 'batch_size': 512, 'mesh.data': 8}, 14.32),
  ],
  '2.65B': [
    ({}, 55.51),
    ({'model.remat': 'names'}, 48.03),
    ({'model.remat': 'full'}, 40.48),
    ({'microbatches': 2, 'batch_size': 2}, 50.82),
    ({'microbatches': 2, 'batch_size': 8, 'model.remat': 'full'}, 47.08),
  ],
  'LLaMA 2.7B': [
    ({}, 56.01),
    ({'model.remat': 'names'}, 50.42),
    ({'batch_size': 32, 'mesh.fsdp': 8}, 29.63),
    ({'microbatches': 2, 'batch_size': 64, 'mesh.fsdp': 8}, 31.50),
    # At commit c9ead37.
    (_TARGET, 7.43),
  ],
}


@pytest.mark.parametrize('name', _COMPILED)
def test_memory_is_near_that_compiled_for_an_h100(name):
  variant, keys = _MODELS[name]
  for changed, compiled in _COMPILED[name]:
    mesh = {k: v for k, v in changed.items() if k.startswith('mesh.')}
    devices = math.prod(mesh.values())
    found = _plan(variant, {**keys, **changed}, devices)
    assert found.peak / 2**30 == pytest.approx(compiled, rel=0.025), changed


@pytest.mark.parametrize(
  'keys, message',
  [
    ({'mesh.fsdp': 3}, '8 devices do not divide by'),
    ({'mesh.data': 2}, 'does not fit 8 devices'),
    ({'mesh.fsdp': 0}, 'must be positive'),
    ({'mesh.data': 0}, 'must be positive'),
    ({'batch_size': 12}, 'batch_size=12 is not a multiple'),
    ({'model.vocab_size': 0}, 'set model.vocab_size'),
  ],
)
def test_what_does_not_fit_together_is_refused(keys, message):
  with pytest.raises(ValueError, match=message):
    _plan(keys={**_GPT2_124M, **keys}, devices=8)


def test_a_subset_for_the_curvature_costs_less_and_has_to_divide():
  whole, half = (
    _plan('gpt2,sophia', {**_GPT2_124M, 'optimizer.hessian_subset': n})
    for n in (1, 2)
  )
  assert half.seconds / whole.seconds == pytest.approx(1.05 / 1.1)
  with pytest.raises(ValueError, match='hessian_subset=3 does not divide'):
    _plan('gpt2,sophia', {**_GPT2_124M, 'optimizer.hessian_subset': 3})


def test_a_study_takes_the_sum_of_its_runs():
  config = base.get_study_config()
  config.update(batch_size=64, steps=500)
  config.model.update(num_layers=12, width=768, num_heads=12, context=1024)
  config.model.vocab_size = 50_304
  config.study.update(models='gpt2', optimizers='adamw,lion', seeds=3)
  config.study.update(target_steps=800, width_ratio=1)
  found = stages.of_study(config, chips.CHIPS['a100'], 8)
  trials = search.count(config, 'adamw')
  assert [(s.kind, str(s.cell), s.runs) for s in found] == [
    ('tune', 'gpt2-adamw', trials),
    ('tune', 'gpt2-lion', search.count(config, 'lion')),
    ('train', 'gpt2-adamw', 3),
    ('train', 'gpt2-lion', 3),
  ]
  # A trial fits one chip; a target has all.
  assert [s.plan.devices for s in found] == [1, 1, 8, 8]
  seconds = found[0].plan.flops / (312e12 * 0.448)
  assert found[0].hours == pytest.approx(trials * 500 * seconds / 3600)
  assert found[2].hours == pytest.approx(3 * 800 * seconds / 3600)
  said = stages.summary(found, 'a100', 8)
  total = sum(stage.hours for stage in found)
  assert said.startswith(f'{sum(s.runs for s in found)} runs, {total:.3g} a100')
  # Far from 124 M parameters, a plan says so.
  assert 'far from' not in said
  config.model.update(num_layers=1, width=192, vocab_size=1024)
  small = stages.of_study(config, chips.CHIPS['a100'], 8)
  assert 'far from this size' in stages.summary(small, 'a100', 8)
  config.model.update(num_layers=12, width=768, vocab_size=50_304)
  # What one chip cannot hold is said; a larger mesh of the trials may hold it.
  config.update(batch_size=256)
  found = stages.of_study(config, chips.CHIPS['a100'], 8)
  assert [s.plan.fits for s in found] == [False, False, True, True]
  config.study.trial_mesh.fsdp = 2
  found = stages.of_study(config, chips.CHIPS['a100'], 8)
  assert [s.plan.devices for s in found] == [2, 2, 8, 8]
  assert all(s.plan.fits for s in found)
  # A run stays on one machine, however many there are.
  assert stages.of_study(config, chips.CHIPS['a100'], 64) == found
  config.study.target = {'mesh': {'data': 16}}
  with pytest.raises(ValueError, match='16 devices of one machine, which has'):
    stages.of_study(config, chips.CHIPS['a100'], 64)


def test_points_that_share_a_plan_have_that_of_their_run():
  config = base.get_study_config()
  config.model.update(num_layers=1, width=32, num_heads=2, context=32)
  config.model.vocab_size = 64
  config.study.update(models='gpt2', optimizers='adamw', width_ratio=1)
  config.study.update(axis_batch_size=(8, 64), axis_depth=(2,), axis_width=(2,))
  config.study.update(axis_epochs=(2,), axis_tokens=(2.0,))
  config.study.update(axis_schedule=('cosine', 'wsd'))
  found = stages.of_study(config, chips.CHIPS['a100'], 1)
  assert len({id(s.plan) for s in found}) < len(found) - 2
  for stage in found[1:]:
    run = cells.target_config(config, stage.cell, {}, 0)
    assert stage.plan == plan.plan(run, chips.CHIPS['a100'], 1)


def test_the_papers_study_has_its_targets():
  config = paper_study.get_config()
  targets = cells.cells(config)
  assert len(targets) * config.study.seeds == 12
  for cell in targets:
    names = cell.model, cell.optimizer, 'multi' if cell.point else 'single'
    wanted = base.flatten(paper_target.get_config(','.join(names)))
    lr = {'lr': wanted['optimizer.lr']}
    found = base.flatten(cells.target_config(config, cell, lr, 0))
    unlike = {key for key in wanted if found[key] != wanted[key]}
    # Resolved shapes are the same; LLaMA shares GPT-2's tokenizer.
    allowed = {'model.num_kv_heads', 'parametrization.base_depth'}
    if cell.model == 'llama':
      allowed |= {
        'model.mlp_dim',
        'parametrization.base_mlp_dim',
        'model.vocab_size',
        'data.source',
      }
    assert unlike == allowed
