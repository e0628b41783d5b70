"""Continues a text.

    python -m launch.generate --model=ckpt:runs/tiny --prompt='Once upon a time'
    python -m launch.generate --model=hf:DIR --prompt=Once --temperature=0.8 \\
        --top_p=0.9 --seed=1

The text is written as it comes, and ends with the end of text or --tokens.
There is no key-value cache: every token costs a pass over the whole text.
Export the model (launch.export) to serve it at speed.
"""

from collections.abc import Iterable, Sequence
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
    'model': flags.DEFINE_string('model', '', 'hf:DIR or ckpt:WORKDIR.'),
    'prompt': flags.DEFINE_string(
      'prompt', '', 'What it starts from; without it from an empty text.'
    ),
    'tokens': flags.DEFINE_integer(
      'tokens', 100, 'Most tokens to add.', lower_bound=1
    ),
    'temperature': flags.DEFINE_float(
      'temperature',
      0.0,
      'Divides the logits; 0: always the likeliest token.',
      lower_bound=0.0,
    ),
    'top_p': flags.DEFINE_float(
      'top_p',
      1.0,
      'Draw from the likeliest tokens that have this probability together.',
      lower_bound=0.0,
      upper_bound=1.0,
    ),
    'seed': flags.DEFINE_integer(
      'seed', 0, 'Of the draws.', lower_bound=0, upper_bound=2**32 - 1
    ),
  }
  cli.run(lambda: _generate(**{k: v.value for k, v in values.items()}), __doc__)


def _generate(
  *,
  model: str,
  prompt: str,
  tokens: int,
  temperature: float,
  top_p: float,
  seed: int,
) -> None:
  if not model:
    raise ValueError('--model is missing: give hf:DIR or ckpt:WORKDIR')
  # JAX starts up for seconds; --help and errors need not wait.
  import jax
  from jax.sharding import NamedSharding

  from steepest.eval import sampling
  from steepest.launch import loading

  # As launch.evaluate: float32 products in float32.
  jax.config.update('jax_default_matmul_precision', 'highest')
  loaded = loading.load_model(model)
  sharding = jax.tree.leaves(loaded.params)[0].sharding
  mesh: Any = sharding.mesh if isinstance(sharding, NamedSharding) else None
  sampler = sampling.Sampler(
    loaded.logits_fn, loaded.tokenizer.vocab_size, mesh
  )
  ids = _encode(prompt, loaded.tokenizer)
  drawn = sampler(
    loaded.params,
    ids,
    tokens,
    loaded.max_length,
    temperature=temperature,
    top_p=top_p,
    seed=seed,
  )
  _stream(ids, drawn, loaded.tokenizer)


def _encode(prompt: str, tokenizer: 'Tokenizer') -> list[int]:
  ids = tokenizer.encode(prompt)
  if ids:
    return ids
  # Where texts follow one another, the end of one starts the next.
  start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
  if start is None:
    raise ValueError('the tokenizer has no token to start with: give --prompt')
  return [start]


def _stream(
  prompt: Sequence[int], drawn: Iterable[int], tokenizer: 'Tokenizer'
) -> None:
  """Writes the text as far as its characters are whole."""
  ids = list(prompt)
  shown = tokenizer.decode(ids, skip_special_tokens=True)
  sys.stdout.write(shown)
  sys.stdout.flush()
  start = time.perf_counter()
  for token in drawn:
    if token == tokenizer.eos_id:
      break
    ids.append(token)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    # The rest of a character may be in the next token.
    whole = text.rstrip('\ufffd')
    sys.stdout.write(whole[len(shown) :])
    sys.stdout.flush()
    shown = max(shown, whole, key=len)
  text = tokenizer.decode(ids, skip_special_tokens=True)
  sys.stdout.write(text[len(shown) :] + '\n')
  seconds = time.perf_counter() - start
  print(f'{len(ids) - len(prompt)} tokens, {seconds:.1f} s', file=sys.stderr)


if __name__ == '__main__':
  main()
