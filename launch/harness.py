"""lm-evaluation-harness with one more model, `steepest`.

    python -m launch.harness --model steepest \\
        --model_args model=ckpt:runs/tiny --tasks gsm8k --limit 100

Needs lm-eval (pip install 'steepest[harness]'). All flags except --model and
--model_args are the harness's own: see its --help. For tasks that this project
has itself, launch.evaluate uses the same prompts and metrics.
"""

import multiprocessing
import sys

from steepest.eval import harness


def main() -> None:
  """The harness's command, which finds the model in its registry."""
  try:
    from lm_eval import __main__ as command
  except ImportError as error:
    line = f'the package lm-eval cannot be imported ({error})'
    sys.exit(f"error: {line}: pip install 'steepest[harness]'")
  harness.register(_load)
  # The harness starts processes for its bootstraps; after a fork the threads
  # of JAX would be missing in them.
  multiprocessing.set_start_method('spawn')
  command.cli_evaluate()


def _load(spec: str) -> harness.Model:
  import jax

  from steepest.eval import likelihoods
  from steepest.training import loading

  # As launch.evaluate: float32 products in float32.
  jax.config.update('jax_default_matmul_precision', 'highest')
  loaded = loading.load_model(spec)
  params, mesh = loading.replicate(loaded.params)
  return harness.Model(
    likelihoods.ScoreFn(loaded.features_fn, mesh),
    loaded.sampler(mesh),
    params,
    loaded.tokenizer,
    loaded.max_length,
  )


if __name__ == '__main__':
  main()
