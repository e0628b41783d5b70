"""`python -m launch.generate` as a user meets it."""

import pathlib

import numpy as np
import pytest

from steepest.training import loading


@pytest.fixture(scope='module')
def model(write_model, tmp_path_factory) -> pathlib.Path:
  """A LLaMA that takes 32 tokens."""
  directory = tmp_path_factory.mktemp('model')
  text = 'the cat sat on the mat'
  return write_model(directory, 'llama', text, 270, context=32)


def test_continues_a_text(fork_commands, model, logits_of):
  args = [f'--model=hf:{model}', '--tokens=8']
  drawn = ['--prompt=the cat', '--temperature=2', '--top_p=0.95']
  greedy, one, same, empty, full = fork_commands(
    [
      ('generate', [*args, '--prompt=the cat']),
      ('generate', [*args, *drawn, '--seed=1']),
      ('generate', [*args, *drawn, '--seed=1']),
      ('generate', [*args]),
      ('generate', [*args, '--prompt=the cat', '--tokens=99']),
    ]
  )
  for result in (greedy, one, same, empty, full):
    assert result.code == 0, result.err
  assert one.out == same.out != greedy.out
  assert one.out.startswith('the cat')
  loaded = loading.load_model(f'hf:{model}')
  tokenizer = loaded.tokenizer
  ids = tokenizer.encode('the cat')
  start = len(ids)
  while len(ids) < start + 8:
    tokens = np.array([ids + [0] * (32 - len(ids))], np.int32)
    token = int(logits_of(loaded, tokens)[0, len(ids) - 1].argmax())
    if token == tokenizer.eos_id:
      break
    ids.append(token)
  assert greedy.out == tokenizer.decode(ids, skip_special_tokens=True) + '\n'
  assert greedy.err.startswith(f'{len(ids) - start} tokens, ')
  if tokenizer.eos_id not in ids and len(tokenizer.encode(full.out)) >= 31:
    assert 'stopped where the context of 32 tokens is full' in full.err
