"""A model for lm-evaluation-harness (the optional package lm-eval).

Tasks, prompts, metrics and output are the harness's own; log-likelihoods come
from likelihoods.py, and texts from the given sampler.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from steepest.data.tokenizers import Tokenizer
from steepest.eval import requests as requests_lib
from steepest.eval.likelihoods import Score, ScoreFn

# Rows continued together, and tokens between searches for stop strings.
_ROWS = 16
_STRIDE = 8
# Tokens to generate if a task sets no number: the harness's default.
_TOKENS = 256
_TOKEN_KEYS = (
  'max_gen_toks',
  'max_new_tokens',
  'max_tokens',
  'max_completion_tokens',
)

# See models/decoding.py.
Sampler = Callable[..., Iterable[list[int | None]]]
_Pair = tuple[Sequence[int], Sequence[int]]


class Model(NamedTuple):
  """A model that scores and continues texts.

  Attributes:
    score_fn: likelihoods.ScoreFn.
    sampler: the same model's.
    params: the model's.
    tokenizer: the model's.
    max_length: the model's longest input, in tokens.
  """

  score_fn: ScoreFn
  sampler: Sampler
  params: Any
  tokenizer: Tokenizer
  max_length: int


class Answers:
  """Answers the harness's three kinds of request, without importing it."""

  def __init__(self, model: Model):
    """Answers for `model`."""
    self._model = model

  def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
    """Returns the scores of (context, continuation)s."""
    return self._score(requests_lib.tokenize(self._model.tokenizer, pairs))

  def rolling(self, texts: Sequence[str]) -> list[float]:
    """Returns log-likelihoods of whole texts, in nats.

    Every token is predicted once, the first one after the prefix token. A text
    that is too long for the model is cut into windows; the last one reaches
    back as far as the model can.
    """
    windows: list[_Pair] = []
    owners = []
    for owner, text in enumerate(texts):
      for window in self._windows(text):
        windows.append(window)
        owners.append(owner)
    sums = [0.0] * len(texts)
    for owner, score in zip(owners, self._score(windows)):
      sums[owner] += score.loglikelihood
    return sums

  def generate(
    self, contexts: Sequence[str], options: dict[str, Any]
  ) -> list[str]:
    """Continues texts until a stop string, which is left out.

    Args:
      contexts: lose their start if they leave too little room.
      options: the harness's: `until`, `max_gen_toks`, and with `do_sample`
        also `temperature`, `top_k` and `top_p`.

    Raises:
      ValueError: there is no room for that many tokens.
    """
    model = self._model
    given = [options[key] for key in _TOKEN_KEYS if key in options]
    tokens = int(given[0]) if given else _TOKENS
    if not 0 < tokens < model.max_length:
      raise ValueError(
        f'{tokens} tokens are to be generated, the model takes '
        f'{model.max_length}: lower max_gen_toks'
      )
    stops = options['until'] if 'until' in options else []
    stops = [stops] if isinstance(stops, str) else stops
    stops = [stop for stop in stops if stop]
    prompts = [
      self._encode(context)[-(model.max_length - tokens) :]
      for context in contexts
    ]
    texts = [''] * len(prompts)
    # Sorted, to batch rows of similar length.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), _ROWS):
      rows = order[first : first + _ROWS]
      # Always the same number of rows, so that one program suffices.
      padded = rows + rows[-1:] * (_ROWS - len(rows))
      found = self._continue(
        [prompts[i] for i in padded], tokens, stops, _sampling(options)
      )
      for i, text in zip(rows, found):
        texts[i] = text
    return texts

  def _continue(
    self,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    stops: Sequence[str],
    how: dict[str, Any],
  ) -> list[str]:
    model = self._model
    steps = model.sampler(
      model.params,
      prompts,
      tokens,
      model.max_length,
      eos_id=model.tokenizer.eos_id,
      **how,
    )
    rows: list[list[int]] = [[] for _ in prompts]
    texts = [''] * len(prompts)
    for count, step in enumerate(steps, start=1):
      for row, token in zip(rows, step):
        if token is not None:
          row.append(token)
      if count % _STRIDE == 0:
        texts = [self._decode(row) for row in rows]
        if all(any(stop in text for stop in stops) for text in texts):
          break
    return [_cut(self._decode(row), stops) for row in rows]

  def _decode(self, ids: Sequence[int]) -> str:
    return self._model.tokenizer.decode(ids, skip_special_tokens=True)

  def _encode(self, text: str) -> list[int]:
    prefix_id, prefix = requests_lib.prefix_token(self._model.tokenizer)
    special = not text.startswith(prefix)
    return self._model.tokenizer.encode(text, special) or [prefix_id]

  def _windows(self, text: str) -> Iterable[_Pair]:
    prefix_id, prefix = requests_lib.prefix_token(self._model.tokenizer)
    special = not text.startswith(prefix)
    ids = self._model.tokenizer.encode(text, special)
    longest = self._model.max_length
    for start in range(0, len(ids), longest):
      stop = min(start + longest, len(ids))
      whole = [prefix_id, *ids][max(stop - longest, 0) : stop + 1]
      count = stop - start
      yield whole[:-count], whole[-count:]

  def _score(self, pairs: Iterable[_Pair]) -> list[Score]:
    model = self._model
    requests = [
      requests_lib.Request('', i, 0, '', '', tuple(context), tuple(target))
      for i, (context, target) in enumerate(pairs)
    ]
    return model.score_fn(model.params, requests, model.max_length)


def _sampling(options: dict[str, Any]) -> dict[str, Any]:
  """Returns sampling arguments; greedy unless `do_sample`."""
  if not ('do_sample' in options and options['do_sample']):
    return {}
  known = {'temperature': float, 'top_k': int, 'top_p': float}
  found = {k: fn(options[k]) for k, fn in known.items() if k in options}
  return {'temperature': 1.0, **found}


def _cut(text: str, stops: Sequence[str]) -> str:
  for stop in stops:
    text = text.partition(stop)[0]
  return text


def register(load: Callable[[str], Model]) -> type:
  """Registers `steepest` as a model of the harness; returns its class.

  Args:
    load: turns `hf:DIR` or `ckpt:WORKDIR` into a model.

  Raises:
    ImportError: lm-eval is not installed.
  """
  from lm_eval.api.model import LM
  from lm_eval.api.registry import register_model

  class Steepest(LM):
    """`--model steepest --model_args model=ckpt:WORKDIR`."""

    def __init__(self, model: str, **options: Any):
      """Loads `model`; `options` about batches and devices have no effect."""
      super().__init__()
      del options
      self._answers = Answers(load(model))
      self._name = model

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
      scores = self._answers.loglikelihoods([r.args for r in requests])
      return [(score.loglikelihood, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Any) -> list[float]:
      return self._answers.rolling([request.args[0] for request in requests])

    def generate_until(self, requests: Any) -> list[str]:
      texts = [''] * len(requests)
      kinds: dict[str, list[int]] = {}
      for i, request in enumerate(requests):
        kinds.setdefault(repr(request.args[1]), []).append(i)
      for members in kinds.values():
        options = requests[members[0]].args[1]
        contexts = [requests[i].args[0] for i in members]
        for i, text in zip(members, self._answers.generate(contexts, options)):
          texts[i] = text
      return texts

    def get_model_info(self) -> dict[str, Any]:
      return {'model': self._name}

  return register_model('steepest')(Steepest)
