"""`python -m launch.evaluate` as a user meets it."""

import json
import pathlib
import random

import numpy as np
import pytest
from safetensors.numpy import save_file

from steepest.data import tokenizers

_WORDS = 'red green blue cats dogs birds sing run sleep under over near'.split()


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> pathlib.Path:
  """A GPT-2 of random weights with its tokenizer."""
  directory = tmp_path_factory.mktemp('model')
  tokenizer = tokenizers.train_bpe(iter([' '.join(_WORDS)] * 9), 300)
  tokenizer.save(directory)
  width, vocab, positions = 16, tokenizer.vocab_size, 128
  config = {
    'model_type': 'gpt2',
    'architectures': ['GPT2LMHeadModel'],
    'n_embd': width,
    'n_layer': 1,
    'n_head': 2,
    'n_inner': None,
    'n_positions': positions,
    'vocab_size': vocab,
    'layer_norm_epsilon': 1e-5,
    'activation_function': 'gelu_new',
    'tie_word_embeddings': True,
    'bos_token_id': tokenizer.bos_id,
    'eos_token_id': tokenizer.eos_id,
  }
  (directory / 'config.json').write_text(json.dumps(config))
  shapes = {
    'wte.weight': (vocab, width),
    'wpe.weight': (positions, width),
    'h.0.attn.c_attn.weight': (width, 3 * width),
    'h.0.attn.c_attn.bias': (3 * width,),
    'h.0.attn.c_proj.weight': (width, width),
    'h.0.attn.c_proj.bias': (width,),
    'h.0.mlp.c_fc.weight': (width, 4 * width),
    'h.0.mlp.c_fc.bias': (4 * width,),
    'h.0.mlp.c_proj.weight': (4 * width, width),
    'h.0.mlp.c_proj.bias': (width,),
  }
  for norm in ('h.0.ln_1', 'h.0.ln_2', 'ln_f'):
    shapes |= {f'{norm}.weight': (width,), f'{norm}.bias': (width,)}
  rng = np.random.default_rng(0)
  weights = {
    f'transformer.{name}': rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }
  save_file(weights, directory / 'model.safetensors')
  return directory


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> pathlib.Path:
  """Documents of two benchmarks."""
  directory = tmp_path_factory.mktemp('data')
  rng = random.Random(0)
  words = lambda: ' '.join(rng.choices(_WORDS, k=3))
  arc = [
    {
      'question': words(),
      'choices': {'text': [words() for _ in 'ABCD'], 'label': list('ABCD')},
      'answerKey': rng.choice('ABCD'),
    }
    for _ in range(12)
  ]
  mmlu = [
    {
      'question': words(),
      'subject': subject,
      'choices': [words() for _ in range(4)],
      'answer': rng.randrange(4),
    }
    for subject in ('anatomy', 'virology', 'philosophy')
    for _ in range(4)
  ]
  for name, docs in {'arc_easy': arc, 'mmlu': mmlu}.items():
    lines = [json.dumps(doc) + '\n' for doc in docs]
    (directory / f'{name}.jsonl').write_text(''.join(lines))
  return directory


def _read(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def test_scores_and_scores_again(run_command, model, data, tmp_path):
  out = tmp_path / 'new' / 'out'
  args = (f'--model=hf:{model}', f'--data={data}', f'--out={out}')
  done = run_command('evaluate', *args, '--tasks=arc_easy,mmlu', '--limit=10')
  assert done.returncode == 0, done.stderr
  results = json.loads((out / 'results.json').read_text())
  info, metrics = results['info'], results['metrics']
  assert metrics['arc_easy']['n'] == metrics['mmlu']['n'] == 10
  # 10 over three subjects, in turn.
  assert [metrics[f'mmlu_{s}']['n'] for s in ('anatomy', 'virology')] == [4, 3]
  assert 'in turn' in info['limit_rule']
  assert info['chance']['arc_easy'] == info['chance']['mmlu'] == 0.25
  assert len(info['data']['mmlu.jsonl']['sha256']) == 64
  assert info['data']['mmlu.jsonl']['origin'] == 'given'
  rows = _read(out / 'requests.jsonl')
  assert len(rows) == 80
  assert all(row['loglikelihood'] < 0 for row in rows)
  assert len(_read(out / 'predictions.jsonl')) == 30
  table = [line for line in done.stdout.splitlines() if '±' in line]
  assert any('arc_easy' in line and 'acc_norm' in line for line in table)
  assert not any('anatomy' in line for line in table)

  pairs = tmp_path / 'pairs.jsonl'
  pairs.write_text(''.join(json.dumps(row) + '\n' for row in rows[:9]))
  done = run_command('evaluate', *args, f'--requests={pairs}')
  assert done.returncode == 0, done.stderr
  again = _read(out / 'requests.jsonl')
  assert len(again) == 9
  for row, before in zip(again, rows):
    score = before['loglikelihood']
    assert row['loglikelihood'] == pytest.approx(score, abs=1e-4)
    assert row['context_ids'] == before['context_ids']
  assert json.loads((out / 'results.json').read_text())['metrics'] == {}
  assert sorted(p.name for p in out.iterdir()) == [
    'predictions.jsonl',
    'requests.jsonl',
    'results.json',
  ]


def test_help(run_command):
  done = run_command('evaluate', '--help')
  assert done.returncode == 0
  assert 'one from each' in ' '.join(done.stdout.split())


@pytest.mark.parametrize(
  'args, words',
  [
    (('--tasks=arc_easy',), '--model is missing'),
    (('--model=hf:x', '--tasks=arc_easy'), '--out is missing'),
    (('--model=hf:x', '--out=y'), 'give --tasks'),
    (
      ('--model=hf:x', '--out=y', '--tasks=arc_eazy'),
      "did you mean 'arc_easy'?",
    ),
    (('--model=hf:x', '--out=y', '--tasks=mmlu', '--limit=-1'), 'limit'),
    (('--model=hf:none', '--out=y', '--tasks=piqa', '--data=.'), 'none'),
  ],
)
def test_errors_are_one_line(run_command, args, words):
  done = run_command('evaluate', *args)
  assert done.returncode == 1
  assert words in done.stderr
  assert done.stderr.count('\n') == 1


def test_missing_documents_are_named(run_command, model, tmp_path):
  done = run_command(
    'evaluate',
    f'--model=hf:{model}',
    f'--data={tmp_path}',
    f'--out={tmp_path / "out"}',
    '--tasks=piqa',
  )
  assert done.returncode == 1
  assert 'no piqa.jsonl' in done.stderr
  assert done.stderr.count('\n') == 1
  assert not (tmp_path / 'out').exists()
