"""Batched scores against one request at a time in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from steepest.eval import likelihoods, packing
from steepest.eval.requests import Request

_VOCAB = 13
_MAX_LENGTH = 70


def _params(seed: int = 0) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {
    'embed': rng.normal(size=(_VOCAB, 8)).astype(np.float32),
    'readout': rng.normal(size=(_VOCAB, 8)).astype(np.float32),
  }


def _features_fn(params, tokens_BxL, visible_BxLxL, positions_BxL):
  """A causal model: the mean of what is seen, later tokens weighing more."""
  L = tokens_BxL.shape[1]
  seen_BxLxL = visible_BxLxL & jnp.tril(jnp.ones((1, L, L), bool))
  weight_BxLxL = seen_BxLxL * (1.0 + positions_BxL[:, None])
  x_BxLxD = jnp.asarray(params['embed'])[tokens_BxL]
  sum_BxLxD = jnp.einsum('blm,bmd->bld', weight_BxLxL, x_BxLxD)
  mean_BxLxD = sum_BxLxD / weight_BxLxL.sum(-1, keepdims=True)
  return mean_BxLxD, jnp.asarray(params['readout'])


def _mean(params, ids) -> np.ndarray:
  past = params['embed'].astype(np.float64)[list(ids)]
  return np.average(past, axis=0, weights=np.arange(1, len(ids) + 1))


def _reference(params, request: Request) -> likelihoods.Score:
  """The definition: every token given all the tokens before it."""
  ids = request.context_ids + request.continuation_ids
  ids = ids[-(_MAX_LENGTH + 1) :]
  total, greedy = 0.0, True
  for i in range(len(ids) - len(request.continuation_ids), len(ids)):
    logits = params['readout'].astype(np.float64) @ _mean(params, ids[:i])
    total += logits[ids[i]] - np.log(np.exp(logits).sum())
    greedy &= int(np.argmax(logits)) == ids[i]
  return likelihoods.Score(total, bool(greedy))


def _request(context, continuation) -> Request:
  return Request('t', 0, 0, '', '', tuple(context), tuple(continuation))


def _random_requests(count: int, seed: int = 0) -> list[Request]:
  rng = np.random.default_rng(seed)
  draw = lambda low, high: rng.integers(_VOCAB, size=rng.integers(low, high))
  requests = []
  while len(requests) < count:
    context = draw(1, 90).tolist()
    # As benchmarks have them: choices of one context, some a single token.
    for _ in range(4):
      requests.append(_request(context, draw(1, 4).tolist()))
  return requests[:count]


def _assert_close(scores, expected):
  for score, want in zip(scores, expected, strict=True):
    assert score.loglikelihood == pytest.approx(want.loglikelihood, abs=1e-4)
    assert score.is_greedy == want.is_greedy


def test_scores_are_the_definition():
  params = _params()
  requests = _random_requests(60)
  # The model's own choices, so that greedy ones are among them.
  for request in requests[:8]:
    past = _mean(params, request.context_ids[-_MAX_LENGTH:])
    best = int(np.argmax(params['readout'] @ past))
    requests.append(_request(request.context_ids, [best]))
  expected = [_reference(params, request) for request in requests]
  assert sum(score.is_greedy for score in expected) >= 8
  scores = likelihoods.ScoreFn(_features_fn)(params, requests, _MAX_LENGTH)
  _assert_close(scores, expected)


@pytest.mark.parametrize('tokens, logits_bytes', [(1, 1), (300, 2**12)])
def test_batch_size_and_order_do_not_matter(monkeypatch, tokens, logits_bytes):
  params = _params()
  requests = _random_requests(40)
  expected = [_reference(params, request) for request in requests]
  monkeypatch.setattr(likelihoods, '_TOKENS_CPU', tokens)
  monkeypatch.setattr(likelihoods, '_LOGITS_BYTES_CPU', logits_bytes)
  monkeypatch.setattr(packing, '_CHUNK', 7)
  score_fn = likelihoods.ScoreFn(_features_fn)
  order = np.random.default_rng(1).permutation(len(requests))
  scores = score_fn(params, [requests[i] for i in order], _MAX_LENGTH)
  _assert_close(scores, [expected[i] for i in order])


def test_shared_input_with_continuations_of_other_lengths():
  # lm-evaluation-harness 0.4.13 scores the shorter one from wrong rows.
  params = _params()
  requests = [_request([1, 2, 3], [4, 5]), _request([1, 2, 3, 4], [6])]
  expected = [_reference(params, request) for request in requests]
  score_fn = likelihoods.ScoreFn(_features_fn)
  for order in ([0, 1], [1, 0]):
    scores = score_fn(params, [requests[i] for i in order], _MAX_LENGTH)
    _assert_close(scores, [expected[i] for i in order])


def test_few_programs_for_all_models_and_lengths():
  score_fn = likelihoods.ScoreFn(_features_fn)
  for seed in range(3):
    score_fn(_params(seed), _random_requests(100, seed), max_length=1024)
  assert 0 < score_fn.compilations <= 3
  before = score_fn.compilations
  score_fn(_params(7), _random_requests(50, seed=9), max_length=1024)
  assert score_fn.compilations == before


def test_equal_logits_choose_the_lowest_index():
  flat = lambda params, tokens_BxL, *_: (
    jnp.zeros((*tokens_BxL.shape, 2)),
    jnp.ones((_VOCAB, 2)),
  )
  score_fn = likelihoods.ScoreFn(flat)
  requests = [_request([1], [0]), _request([1], [1]), _request([1], [0, 2])]
  scores = score_fn({}, requests, _MAX_LENGTH)
  assert [score.is_greedy for score in scores] == [True, False, False]
  for score, tokens in zip(scores, (1, 1, 2)):
    assert score.loglikelihood == pytest.approx(-tokens * np.log(_VOCAB))


def test_progress_ends_at_the_number_of_requests():
  calls = []
  requests = [*_random_requests(30), *_random_requests(30)]
  scores = likelihoods.ScoreFn(_features_fn)(
    _params(), requests, _MAX_LENGTH, lambda *numbers: calls.append(numbers)
  )
  assert calls[-1] == (60, 60)
  assert calls == sorted(calls)
  assert scores[:30] == scores[30:]


def test_nothing_to_score():
  assert likelihoods.ScoreFn(_features_fn)(_params(), [], 8) == []


def test_nan_is_an_error():
  params = _params()
  params['readout'][0, 0] = np.nan
  with pytest.raises(ValueError, match='NaN'):
    likelihoods.ScoreFn(_features_fn)(params, _random_requests(4), 70)


def test_too_long_a_continuation_is_an_error():
  request = dataclasses.replace(_request([1], range(9)), task='arc_easy')
  with pytest.raises(ValueError, match='arc_easy.*has 9 tokens.*takes 8'):
    likelihoods.ScoreFn(_features_fn)(_params(), [request], 8)


def test_rows_are_split_over_a_mesh():
  mesh = jax.make_mesh(
    (2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3
  )
  params = _params()
  requests = _random_requests(60)
  expected = [_reference(params, request) for request in requests]
  params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
  scores = likelihoods.ScoreFn(_features_fn, mesh)(
    params, requests, _MAX_LENGTH
  )
  _assert_close(scores, expected)
