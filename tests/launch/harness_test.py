"""The adapter for lm-evaluation-harness, against our own scores."""

import math
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from steepest.eval import harness, requests
from steepest.launch import harness as command
from steepest.training import loading

_TEXT = 'the cat sat on the mat. the dog ran to the cat. '
_CONTEXT = 16


@pytest.fixture(scope='module')
def spec(write_model, tmp_path_factory) -> str:
  """A GPT-2 that takes 16 tokens, far from uniform: wrong positions show."""
  directory = tmp_path_factory.mktemp('model')
  shapes = {'width': 32, 'context': _CONTEXT}
  write_model(directory, 'gpt2', _TEXT, 270, scale=4.0, **shapes)
  return f'hf:{directory}'


@pytest.fixture(scope='module')
def loaded(spec) -> loading.LoadedModel:
  return loading.load_model(spec)


@pytest.fixture(scope='module')
def answers(spec) -> harness.Answers:
  return harness.Answers(command._load(spec))


@pytest.fixture(scope='module')
def log_probabilities(loaded, logits_of):
  def fn(ids) -> np.ndarray:
    logits_LxV = logits_of(loaded, np.array([ids], np.int32))[0]
    return np.asarray(jax.nn.log_softmax(logits_LxV))

  return fn


def test_scores_are_our_own(answers, loaded, log_probabilities):
  pairs = [('the cat', ' sat'), ('the cat', ' ran to'), ('', 'the dog')]
  ids = requests.tokenize(loaded.tokenizer, pairs)
  for score, (context, target) in zip(answers.loglikelihoods(pairs), ids):
    logp_LxV = log_probabilities((*context, *target)[:-1])
    rows = logp_LxV[-len(target) :]
    wanted = sum(row[token] for row, token in zip(rows, target))
    assert score.loglikelihood == pytest.approx(wanted, abs=1e-4)
    assert score.is_greedy == (tuple(rows.argmax(-1)) == tuple(target))


@pytest.mark.parametrize('count', [1, 5, 16, 17, 40])
def test_rolling_predicts_every_token_once(
  answers, loaded, count, log_probabilities
):
  text = loaded.tokenizer.decode(loaded.tokenizer.encode(_TEXT * 9)[:count])
  ids = loaded.tokenizer.encode(text)
  assert len(ids) == count
  whole = [loaded.tokenizer.eos_id, *ids]
  wanted = 0.0
  for start in range(0, count, _CONTEXT):
    stop = min(start + _CONTEXT, count)
    # The last window reaches back as far as the model can.
    first = max(0, stop - _CONTEXT)
    logp_LxV = log_probabilities(whole[first:stop])
    for i in range(start, stop):
      wanted += logp_LxV[i - first, ids[i]]
  [found] = answers.rolling([text])
  assert found == pytest.approx(wanted, abs=1e-3)
  assert math.isfinite(found)


def test_generation_is_greedy_and_stops(answers, loaded, log_probabilities):
  ids = loaded.tokenizer.encode('the cat')
  new: list[int] = []
  for _ in range(6):
    new.append(int(log_probabilities(ids + new)[-1].argmax()))
  text = loaded.tokenizer.decode(new)
  options = {'until': [], 'max_gen_toks': 6}
  assert answers.generate(['the cat'] * 3, options) == [text] * 3
  stop = text[len(text) // 2 :][:1]
  options = {'until': ['never', stop], 'max_gen_toks': 6}
  assert answers.generate(['the cat'], options) == [text[: text.index(stop)]]


def test_no_room_to_generate_is_an_error(answers):
  with pytest.raises(ValueError, match='256 tokens .* takes 16'):
    answers.generate(['the cat'], {'until': '.'})


def test_the_harness_finds_the_model(spec, answers):
  pytest.importorskip('lm_eval', reason='the extra harness is not installed')
  from lm_eval.api.registry import get_model

  harness.register(command._load)
  model = get_model('steepest').create_from_arg_string(f'model={spec}')
  pairs = [('the cat', ' sat'), ('the dog', ' ran')]
  asked = [SimpleNamespace(args=pair) for pair in pairs]
  wanted = [
    (s.loglikelihood, s.is_greedy) for s in answers.loglikelihoods(pairs)
  ]
  assert model.loglikelihood(asked) == wanted


def test_a_missing_harness_is_one_line():
  if 'lm_eval' in sys.modules:
    pytest.skip('lm_eval is installed')
  root = pathlib.Path(__file__).parent.parent.parent
  done = subprocess.run(
    [sys.executable, '-m', 'launch.harness', '--help'],
    cwd=root,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr.startswith('error: the package lm-eval')
  assert done.stderr.count('\n') == 1
