"""Recipes resolve to what is on record, and have the sizes they claim."""

import itertools
import json
import os
import pathlib

from flax import linen as nn
import jax
from jax import numpy as jnp
from ml_collections import ConfigDict
import pytest

from steepest.experiments import (
  base,
  gpt2_124m,
  llama_130m,
  paper_proxy,
  paper_target,
  quickstart,
  tiny,
  transfer_study,
)
from steepest.models import config as model_config, parametrization
from steepest.training import flops

_MODELS = ('gpt2', 'llama')
_OPTIMIZERS = ('adamw', 'lion', 'sophia')
_PAPER = [
  ','.join(words)
  for words in itertools.product(_MODELS, _OPTIMIZERS, ('single', 'multi'))
]
_RECIPES = {
  'gpt2_124m': (gpt2_124m, _OPTIMIZERS),
  'llama_130m': (llama_130m, _OPTIMIZERS),
  'paper_proxy': (paper_proxy, _PAPER),
  'paper_target': (paper_target, _PAPER),
  'tiny': (tiny, [f'{m},{o}' for m in _MODELS for o in _OPTIMIZERS]),
}
_UPDATE = 'STEEPEST_UPDATE_GOLDEN'


def _changed(leaves: dict, plain: dict) -> dict:
  """Returns what a recipe sets; only keys of optimizers may be new."""
  assert leaves.keys() >= plain.keys()
  for key in leaves.keys() - plain.keys():
    assert key.startswith(('optimizer.', 'study.lrs_', 'study.space_')), key
  return {k: v for k, v in leaves.items() if k not in plain or v != plain[k]}


def _parameters(config: ConfigDict) -> int:
  model = model_config.resolve(config.model, 256, config.dtype)
  rules = parametrization.resolve(config.parametrization, model)
  module = model_config.find_model(model.name).Model(model, rules)
  params = jax.eval_shape(
    module.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32)
  )
  return flops.count(nn.unbox(params['params']))['parameters']


def _json(value: object) -> object:
  return json.loads(json.dumps(value))


def _check(path: pathlib.Path, value: object) -> None:
  if os.environ.get(_UPDATE):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + '\n', 'utf-8')
  assert _json(value) == json.loads(path.read_text('utf-8')), (
    f'{path.name}: a default or a recipe changed. If it was meant, run '
    f'{_UPDATE}=1 pytest tests/experiments and commit the difference'
  )


def test_base_is_on_record(golden):
  _check(golden / 'configs' / 'base.json', base.flatten(base.get_config()))


def test_study_keys_are_on_record(golden):
  study = base.flatten(base.get_study_config())
  plain = base.flatten(base.get_config())
  assert plain.items() <= study.items()
  _check(
    golden / 'configs' / 'study.json',
    {k: v for k, v in study.items() if k not in plain},
  )


def test_studies_are_on_record(golden):
  study = base.flatten(base.get_study_config())
  for recipe, variants in (
    (quickstart, ('',)),
    (transfer_study, ('gpt2', 'llama,b1', 'depth')),
  ):
    recorded = {}
    for words in variants:
      leaves = base.flatten(recipe.get_config(words))
      recorded[words] = _changed(leaves, study)
    name = recipe.__name__.rpartition('.')[2]
    _check(golden / 'configs' / f'{name}.json', recorded)


@pytest.mark.parametrize('name', _RECIPES)
def test_recipe_is_on_record(golden, name):
  module, variants = _RECIPES[name]
  plain = base.flatten(base.get_config())
  resolved = {}
  for variant in variants:
    leaves = base.flatten(module.get_config(variant))
    resolved[variant] = _changed(leaves, plain)
  _check(golden / 'configs' / f'{name}.json', resolved)


@pytest.mark.parametrize(
  'config, low, high',
  [
    # 12·(12·768² + 13·768) + 2·768 + 1024·768, and 50,304 rows of 768.
    (gpt2_124m.get_config(), 124_475_904, 124_475_904),
    # 12·(4·768² + 3·768·2048 + 2·768) + 768 + 2·32,000·768.
    (llama_130m.get_config(), 134_105_856, 134_105_856),
    (paper_proxy.get_config('gpt2'), 38e6, 39e6),
    (paper_proxy.get_config('llama'), 43e6, 45e6),
    (paper_target.get_config('gpt2'), 2.6e9, 2.7e9),
    (paper_target.get_config('llama'), 2.7e9, 2.75e9),
    (tiny.get_config('gpt2'), 0.05e6, 0.2e6),
    (tiny.get_config('llama'), 0.05e6, 0.2e6),
  ],
)
def test_recipes_have_the_sizes_they_claim(config, low, high):
  assert low <= _parameters(config) <= high


@pytest.mark.parametrize('variant', _PAPER)
def test_target_is_the_proxy_grown(variant):
  proxy = paper_proxy.get_config(variant)
  target = paper_target.get_config(variant)
  differ = {
    key
    for key, value in base.flatten(target).items()
    if base.flatten(proxy)[key] != value
  }
  assert differ == {
    'eval_every',
    'eval_tasks',
    'mesh.fsdp',
    'microbatches',
    'model.mlp_dim',
    'model.num_heads',
    'model.remat',
    'model.scan_layers',
    'model.width',
    'stage',
    'steps',
  }
  tokens = target.steps * target.batch_size * target.model.context
  assert abs(tokens - 60e9) < target.batch_size * target.model.context
  model = model_config.resolve(target.model, 256, target.dtype)
  rules = parametrization.resolve(target.parametrization, model)
  assert rules.width_ratio == 10
  base_shapes = model_config.resolve(proxy.model, 256, proxy.dtype)
  own = parametrization.resolve(proxy.parametrization, base_shapes)
  for name in ('width', 'heads', 'mlp'):
    role, _ = own.hidden(name)
    assert own.factors(role).lr == 1
    assert rules.hidden(name)[0].base_fan_in == role.fan_in


@pytest.mark.parametrize(
  'module, arg, said',
  [
    (tiny, 'gtp2', "did you mean 'gpt2'"),
    (paper_proxy, 'gpt2,lion,mutli', "did you mean 'multi'"),
    (paper_target, 'single,multi', 'exclude'),
    (gpt2_124m, 'llama', 'llama_130m.py'),
    (llama_130m, 'gpt2', 'gpt2_124m.py'),
  ],
)
def test_a_wrong_variant_is_named(module, arg, said):
  with pytest.raises(ValueError, match=said):
    module.get_config(arg)


@pytest.mark.parametrize(
  'config',
  [gpt2_124m.get_config(), llama_130m.get_config()]
  + [paper_target.get_config(v) for v in _PAPER],
)
def test_batches_divide_over_nodes_of_eight(config):
  for devices in (8, 64):
    assert config.batch_size % (devices * config.microbatches) == 0
  model = model_config.resolve(config.model, 256, config.dtype)
  assert model.vocab_size % 128 == 0
  assert model.width % 8 == model.mlp_dim % 8 == 0
