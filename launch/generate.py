"""Continues texts.

    python -m launch.generate --model=ckpt:runs/tiny --prompt='Once upon a time'
    python -m launch.generate --model=hf:DIR --prompt=Once --temperature=0.8 \\
        --top_p=0.9 --seed=1

The text after one prompt is written as it comes. Several (--prompt=A
--prompt=B) are continued side by side and written one after the other, with an
empty line between. A text ends with the token that ends texts, after --tokens,
or where the model's context is full. Keys and values are kept, so each token
costs a pass over that token only.
"""

from collections.abc import Iterator
import sys
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from steepest.launch import cli

if TYPE_CHECKING:
  from steepest.data.tokenizers import Tokenizer


def main() -> None:
  """The command."""
  values: dict[str, flags.FlagHolder] = {
    'model': flags.DEFINE_string('model', '', 'ckpt:WORKDIR or hf:DIR.'),
    'prompt': flags.DEFINE_multi_string(
      'prompt',
      [],
      'What the text starts with; may be repeated. Without it, with nothing.',
    ),
    'tokens': flags.DEFINE_integer(
      'tokens', 100, 'Most tokens to add to each.', lower_bound=1
    ),
    'temperature': flags.DEFINE_float(
      'temperature',
      0.0,
      'Divides the logits; 0: always the most likely token.',
      lower_bound=0.0,
    ),
    'top_k': flags.DEFINE_integer(
      'top_k',
      0,
      'Draw from that many of the most likely tokens; 0: from all.',
      lower_bound=0,
    ),
    'top_p': flags.DEFINE_float(
      'top_p',
      1.0,
      'Draw from the most likely tokens that together have this probability '
      '(out of those that --top_k leaves).',
      lower_bound=0.0,
      upper_bound=1.0,
    ),
    'seed': flags.DEFINE_integer(
      'seed', 0, 'Of the draws.', lower_bound=0, upper_bound=2**32 - 1
    ),
  }
  cli.run(lambda: _generate(**{k: v.value for k, v in values.items()}), __doc__)


def _generate(
  *, model: str, prompt: list[str], tokens: int, **how: Any
) -> None:
  if not model:
    raise ValueError('--model is missing: give ckpt:WORKDIR or hf:DIR')
  # JAX takes seconds to start; --help and errors need not wait.
  import jax

  from steepest.training import loading

  # As launch.evaluate: float32 products in float32.
  jax.config.update('jax_default_matmul_precision', 'highest')
  loaded = loading.load_model(model)
  tokenizer = loaded.tokenizer
  params, mesh = loading.replicate(loaded.params)
  texts = [
    _Text(_encode(text, tokenizer), tokenizer) for text in prompt or ['']
  ]
  rows = loaded.sampler(mesh)(
    params,
    [text.ids for text in texts],
    tokens,
    loaded.max_length,
    eos_id=tokenizer.eos_id,
    **how,
  )
  _write(texts, rows, loaded.max_length)


def _encode(prompt: str, tokenizer: 'Tokenizer') -> list[int]:
  ids = tokenizer.encode(prompt)
  if ids:
    return ids
  # Where texts follow one another, the end of one starts the next.
  start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
  if start is None:
    raise ValueError('the tokenizer has no token to start with: give --prompt')
  return [start]


class _Text:
  """A growing text, of which whole characters are written."""

  def __init__(self, ids: list[int], tokenizer: 'Tokenizer'):
    self.ids = list(ids)
    self._tokenizer = tokenizer
    self._shown = ''

  def add(self, token: int | None) -> bool:
    """Adds a token, unless it ends the text; returns whether it was added."""
    if token is None or token == self._tokenizer.eos_id:
      return False
    self.ids.append(token)
    return True

  def new(self, last: bool = False) -> str:
    """Returns what can be written now; with `last`, all that is left."""
    text = self._tokenizer.decode(self.ids, skip_special_tokens=True)
    if not last:
      # The rest of a character may be in the next token.
      text = text.rstrip('\ufffd')
    added = text[len(self._shown) :]
    self._shown = max(self._shown, text, key=len)
    return added


def _write(
  texts: list[_Text], rows: Iterator[list[int | None]], max_length: int
) -> None:
  """Writes a single text as it comes, several when all have ended."""

  def show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

  alone = len(texts) == 1
  if alone:
    show(texts[0].new())
  start, tokens = time.perf_counter(), 0
  for row in rows:
    for text, token in zip(texts, row):
      tokens += text.add(token)
    if alone:
      show(texts[0].new())
  show('\n\n'.join(text.new(last=True) for text in texts) + '\n')
  seconds = time.perf_counter() - start
  print(f'{tokens} tokens, {seconds:.1f} s', file=sys.stderr)
  if any(len(text.ids) >= max_length for text in texts):
    print(
      f'stopped where the context of {max_length} tokens is full',
      file=sys.stderr,
    )


if __name__ == '__main__':
  main()
