"""Strings to ids, truncation."""

import copy
import json

from hypothesis import given, strategies as st
import pytest

from steepest.data import tokenizers
from steepest.eval import requests

_TEXTS = [
  'The capital of France is Paris. The capital of Italy is Rome.',
  'Hello world, unbelievable worlds; once upon a time there was a girl.',
] * 20


@pytest.fixture(scope='module')
def tokenizer() -> tokenizers.Tokenizer:
  return tokenizers.train_bpe(iter(_TEXTS), 300)


def _pair(tokenizer, context, continuation):
  [(context_ids, continuation_ids)] = requests.tokenize(
    tokenizer, [(context, continuation)]
  )
  return context_ids, continuation_ids


@pytest.mark.parametrize('blank', ['', ' ', '  ', '\n', '\n\n\t', '\u00a0'])
def test_whitespace_moves_to_the_continuation(tokenizer, blank):
  moved = _pair(tokenizer, f'The capital{blank}', 'Paris')
  assert moved == _pair(tokenizer, 'The capital', f'{blank}Paris')
  assert moved[0] == tuple(tokenizer.encode('The capital'))


def test_a_token_across_the_border_is_cut_by_position(tokenizer):
  context, continuation = 'The cap', 'ital of'
  whole = tokenizer.encode(context + continuation)
  alone = tokenizer.encode(context)
  assert whole[: len(alone)] != alone
  ids = _pair(tokenizer, context, continuation)
  assert ids == (tuple(alone), tuple(whole[len(alone) :]))


def test_empty_context_is_a_prefix_token(tokenizer):
  expected = ((tokenizer.eos_id,), tuple(tokenizer.encode(' Paris')))
  without_bos = copy.copy(tokenizer)
  without_bos.bos_id = without_bos.bos_token = None
  assert _pair(without_bos, '', ' Paris') == expected
  without_bos.eos_id = without_bos.eos_token = None
  with pytest.raises(ValueError, match='neither'):
    _pair(without_bos, '', ' Paris')


def test_prefix_in_the_continuation_is_not_doubled(tokenizer):
  ids = _pair(tokenizer, '', '<|endoftext|> Paris')
  assert ids == _pair(tokenizer, '', ' Paris')


def test_empty_sides_are_errors(tokenizer):
  with pytest.raises(ValueError, match='context has no tokens'):
    _pair(tokenizer, ' \n', 'Paris')
  with pytest.raises(ValueError, match='continuation has no tokens'):
    _pair(tokenizer, 'Paris', '')
  with pytest.raises(ValueError, match='continuation has no tokens'):
    _pair(tokenizer, '', '<|endoftext|>')


_ids = st.lists(st.integers(0, 99), min_size=1, max_size=30).map(tuple)


@given(_ids, _ids, st.integers(1, 40))
def test_truncation_keeps_the_last_tokens(context, continuation, max_length):
  request = requests.Request('t', 0, 0, '', '', context, continuation)
  if len(continuation) > max_length:
    with pytest.raises(ValueError, match='longer context'):
      requests.truncate(request, max_length)
    return
  inputs, targets = requests.truncate(request, max_length)
  whole = context + continuation
  assert targets == continuation
  assert len(inputs) == min(max_length, len(whole) - 1)
  # Input i predicts token i + 1, so the two together end the whole.
  assert (*inputs, whole[-1]) == whole[-(len(inputs) + 1) :]


def test_requests_are_tokenised_in_portions(monkeypatch, tokenizer, tmp_path):
  file = tmp_path / 'pairs.jsonl'
  pair = {'task': 't', 'choice': 0, 'context': 'The capital'}
  lines = [{**pair, 'doc_id': i, 'continuation': f' of {i}'} for i in range(5)]
  file.write_text('\n'.join(map(json.dumps, lines)))
  whole = requests.read_requests(file, tokenizer)
  monkeypatch.setattr(requests, '_CHUNK', 2)
  assert requests.read_requests(file, tokenizer) == whole
  assert [request.doc_id for request in whole] == list(range(5))


def test_given_pairs_need_their_fields(tmp_path, tokenizer):
  path = tmp_path / 'pairs.jsonl'
  pair = {'task': 'x', 'doc_id': 7, 'choice': 1, 'context': 'The '}
  path.write_text(json.dumps({**pair, 'continuation': 'capital'}))
  [request] = requests.read_requests(path, tokenizer)
  assert (request.doc_id, request.context) == (7, 'The ')
  assert request.continuation_ids == tuple(tokenizer.encode(' capital'))
  path.write_text(json.dumps(pair))
  with pytest.raises(ValueError, match='request 1: lacks continuation'):
    requests.read_requests(path, tokenizer)
  # JSON can spell half a character, which has no tokens.
  path.write_text(json.dumps({**pair, 'continuation': '\ud800'}))
  with pytest.raises(ValueError, match='pairs.jsonl, line 1: .* surrogate'):
    requests.read_requests(path, tokenizer)
