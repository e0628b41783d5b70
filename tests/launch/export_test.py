"""`python -m launch.export` as a user meets it."""

import json
import pathlib

import numpy as np
import pytest
from safetensors import safe_open

from steepest.data import tokenizers
from steepest.training import loading

_FILES = [
  'config.json',
  'generation_config.json',
  'model.safetensors',
  'tokenizer.json',
  'tokenizer_config.json',
]


@pytest.fixture(scope='module')
def run(fork_commands, golden, tmp_path_factory) -> pathlib.Path:
  """A run of twice the base width with its tokenizer."""
  workdir = tmp_path_factory.mktemp('run')
  tokenizer = tokenizers.train_bpe(iter(['some text of no weight'] * 9), 270)
  config = {
    'data.source': f'flat:{golden / "tokens.npy"}',
    'model.num_layers': 2,
    'model.width': 32,
    'model.num_heads': 4,
    'model.num_kv_heads': 2,
    'model.context': 16,
    'model.vocab_size': tokenizer.vocab_size,
    'parametrization.base_width': 16,
    'parametrization.base_depth': 1,
    'parametrization.depth_rule': 'completep',
    'steps': 2,
    'checkpoint_every': 2,
    'mesh.data': 1,
  }
  args = [f'--config.{key}={value}' for key, value in config.items()]
  recipe = '--config=experiments/tiny.py:llama,adamw'
  (done,) = fork_commands([('train', [recipe, f'--workdir={workdir}', *args])])
  assert done.code == 0, done.err
  tokenizer.save(workdir)
  return workdir


@pytest.fixture(scope='module')
def exported(fork_commands, run, tmp_path_factory):
  """The directory, and what the command said first and said then."""
  out = tmp_path_factory.mktemp('exported') / 'new' / 'model'
  args = [f'--model=ckpt:{run}', f'--out={out}']
  first, again = fork_commands([('export', args)] * 2)
  assert first.code == 0, first.err
  return out, first, again


def test_the_directory_holds_the_model(run, exported, logits_of):
  out, first, _ = exported
  assert sorted(p.name for p in out.iterdir()) == _FILES
  # The temporary directory is gone.
  assert [p.name for p in out.parent.iterdir()] == ['model']
  assert 'after 2 steps' in first.out and str(out) in first.out
  config = json.loads((out / 'config.json').read_text('utf-8'))
  assert config['architectures'] == ['LlamaForCausalLM']
  told = json.loads((out / 'tokenizer_config.json').read_text('utf-8'))
  assert told['model_max_length'] == config['max_position_embeddings'] == 16
  with safe_open(out / 'model.safetensors', 'numpy') as file:
    assert file.metadata() == {'format': 'pt'}
  wanted = loading.load_model(f'ckpt:{run}')
  got = loading.load_model(f'hf:{out}')
  assert wanted.rules.readout_multiplier == wanted.rules.residual_multiplier
  assert wanted.rules.readout_multiplier == 0.5
  assert got.tokenizer.sha256 == wanted.tokenizer.sha256
  assert (
    got.tokenizer.eos_id == wanted.tokenizer.eos_id == config['eos_token_id']
  )
  tokens = np.arange(8 * 16, dtype=np.int32).reshape(8, 16)
  logits = [np.asarray(logits_of(model, tokens)) for model in (wanted, got)]
  np.testing.assert_allclose(*logits, atol=1e-5)


def test_transformers_reads_it(exported):
  """Its tokenizer too: the ids are ours."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  out, *_ = exported
  model = transformers.AutoModelForCausalLM.from_pretrained(str(out))
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(out))
  ours = loading.load_model(f'hf:{out}')
  text = 'some weight of <|endoftext|> text'
  assert tokenizer(text)['input_ids'] == ours.tokenizer.encode(text)
  assert tokenizer.eos_token_id == ours.tokenizer.eos_id
  assert tokenizer.model_max_length == 16
  prompt = tokenizer('some', return_tensors='pt')
  with torch.no_grad():
    ids = model.generate(**prompt, max_new_tokens=5, do_sample=False)
  assert ids.shape[1] <= prompt['input_ids'].shape[1] + 5


def test_nothing_is_written_over(exported):
  out, _, again = exported
  assert again.code == 1
  assert again.err.count('\n') == 1
  assert f'--out={out} is not empty' in again.err
