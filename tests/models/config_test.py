"""Shapes that do not divide and names that do not exist are refused."""

import pytest

from steepest.models import config as model_config, llama


@pytest.mark.parametrize(
  'name, shapes, said',
  [
    ('gpt2', {'width': 30}, r'width=30 is not a multiple of .*num_heads=4'),
    ('llama', {'num_kv_heads': 3}, r'num_heads=4 is not a multiple of'),
    ('gpt2', {'num_kv_heads': 2}, 'gpt2 has as many'),
    ('llama', {'head_dim': 7}, 'rotary positions need an even one'),
    ('llama', {'activation': 'relu'}, "'relu'.*gelu_tanh"),
    ('llama', {'remat': 'half'}, "'half'.*full"),
    ('gpt2', {'zero_init_readout': True}, 'tie_embeddings=False'),
    ('gpt2', {'qk_norm': True, 'zero_init_query': True}, 'zero_init_query=F'),
    ('gpt2', {'num_layers': 0}, 'num_layers=0: must be at least 1'),
    ('gpt2', {'vocab_size': -1}, 'vocab_size=-1: must be at least 1'),
    ('gpt2', {'num_heads': 0}, 'num_heads=0: must be at least 1'),
    ('llama', {'num_kv_heads': -2}, 'num_kv_heads=-2: must be at least'),
    ('gpt2', {'compute': 'float16'}, r'dtype\.compute=.float16.: must be one'),
  ],
)
def test_refused(build_model, name, shapes, said):
  with pytest.raises(ValueError, match=said):
    build_model(name, **shapes)


def test_zeros_are_resolved(build_model):
  model = build_model('llama', width=48, num_heads=6).rules.model
  assert model.head_dim == 8
  assert model.num_kv_heads == 6
  # 8/3·48 = 128.
  assert model.mlp_dim == 128
  assert build_model('gpt2', width=48).rules.model.mlp_dim == 192
  for width, mlp_dim in ((32, 96), (256, 704), (768, 2048)):
    assert llama.default_mlp_dim(width) == mlp_dim


@pytest.mark.parametrize(
  'text, said',
  [
    ('', 'the file does not define Model, HABITS, default_mlp_dim, check'),
    (
      'check = Model = default_mlp_dim = 0\nHABITS = {}',
      'HABITS has no bias, tie_',
    ),
    (
      'from __future__ import annotations\nimport dataclasses\n'
      '@dataclasses.dataclass\nclass Model:\n  x: int = 0',
      'the file does not define HABITS, ',
    ),
    ('raise KeyError("a\\nb")', 'cannot be imported: KeyError'),
    ('import nowhere', 'cannot be imported: ModuleNotFoundError: .*nowhere'),
  ],
)
def test_what_a_file_lacks_is_one_line(tmp_path, text, said):
  path = tmp_path / 'mine.py'
  path.write_text(text, 'utf-8')
  with pytest.raises(ValueError, match=said) as error:
    model_config.find_model(str(path))
  assert '\n' not in str(error.value)


def test_a_name_that_is_no_model_is_corrected():
  with pytest.raises(ValueError, match="did you mean 'llama'.* gpt2, llama"):
    model_config.find_model('lama')
  with pytest.raises(FileNotFoundError, match='no such file'):
    model_config.find_model('./gone.py')
