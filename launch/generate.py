"""Continues a text.

    python -m launch.generate --model=ckpt:runs/tiny --prompt='Once upon a time'
    python -m launch.generate --model=hf:DIR --prompt=Once --temperature=0.8 \\
        --top_p=0.9 --seed=1

Prints text as it is generated. Stops at the end-of-text token, after --tokens
tokens, or when the model's context is full. Keys and values are cached, so each
token costs a pass over that token only.
"""

from collections.abc import Iterable
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
    'model': cli.define_required(
      'model', 'ckpt:WORKDIR or hf:DIR.', 'ckpt:WORKDIR or hf:DIR'
    ),
    'prompt': flags.DEFINE_string('prompt', '', 'Start of the text.'),
    'tokens': flags.DEFINE_integer(
      'tokens', 100, 'Maximum number of new tokens.', lower_bound=1
    ),
    'temperature': flags.DEFINE_float(
      'temperature',
      0.0,
      'Divides the logits; 0: take the most likely token.',
      lower_bound=0.0,
    ),
    'top_k': flags.DEFINE_integer(
      'top_k',
      0,
      'Sample from this many most likely tokens; 0: from all.',
      lower_bound=0,
    ),
    'top_p': flags.DEFINE_float(
      'top_p',
      1.0,
      'Sample from the most likely tokens with this total probability, among '
      'those that --top_k leaves.',
      lower_bound=0.0,
      upper_bound=1.0,
    ),
    'seed': flags.DEFINE_integer(
      'seed', 0, 'Seed of the samples.', lower_bound=0, upper_bound=2**32 - 1
    ),
  }
  cli.run(lambda: _generate(**{k: v.value for k, v in values.items()}), __doc__)


def _generate(*, model: str, prompt: str, tokens: int, **how: Any) -> None:
  # JAX takes seconds to start; --help and errors need not wait.
  import jax

  from steepest.training import loading

  # As launch.evaluate: float32 products in float32.
  jax.config.update('jax_default_matmul_precision', 'highest')
  loaded = loading.load_model(model)
  tokenizer = loaded.tokenizer
  params, mesh = loading.replicate(loaded.params)
  ids = _encode(prompt, tokenizer)
  rows = loaded.sampler(mesh)(
    params,
    [ids],
    tokens,
    loaded.max_length,
    eos_id=tokenizer.eos_id,
    **how,
  )
  _write(ids, (token for (token,) in rows), tokenizer, loaded.max_length)


def _encode(prompt: str, tokenizer: 'Tokenizer') -> list[int]:
  ids = tokenizer.encode(prompt)
  if ids:
    return ids
  # In packed training data, an end-of-text token precedes the next document.
  start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
  if start is None:
    raise ValueError('the tokenizer has no token to start with: give --prompt')
  return [start]


def _write(
  prompt: list[int],
  following: Iterable[int | None],
  tokenizer: 'Tokenizer',
  max_length: int,
) -> None:
  """Prints tokens as they are generated, in whole characters."""
  ids, shown = list(prompt), ''

  def show(last: bool = False) -> None:
    nonlocal shown
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if not last:
      # The rest of a character may be in the next token.
      text = text.rstrip('\ufffd')
    sys.stdout.write(text[len(shown) :])
    sys.stdout.flush()
    shown = max(shown, text, key=len)

  start = time.perf_counter()
  show()
  for token in following:
    if token is not None and token != tokenizer.eos_id:
      ids.append(token)
      show()
  show(last=True)
  print()
  seconds = time.perf_counter() - start
  print(f'{len(ids) - len(prompt)} tokens, {seconds:.1f} s', file=sys.stderr)
  if len(ids) >= max_length:
    print(
      f'stopped where the context of {max_length} tokens is full',
      file=sys.stderr,
    )


if __name__ == '__main__':
  main()
