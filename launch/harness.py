"""Runs lm-evaluation-harness with this project's models.

    python -m launch.harness --model steepest \\
        --model_args model=ckpt:runs/tiny --tasks gsm8k --limit 100

Needs lm-eval (pip install 'steepest[harness]'). All flags are the harness's:
see its --help. Tasks that this project implements too have the same prompts and
metrics in launch.evaluate.
"""

import multiprocessing
import sys

from steepest.eval import harness


def main() -> None:
  """The harness's command, with the model `steepest` in its registry."""
  try:
    from lm_eval import __main__ as command
  except ImportError as error:
    line = f'the package lm-eval cannot be imported ({error})'
    sys.exit(f"error: {line}: pip install 'steepest[harness]'")
  harness.register(_load)
  # The harness bootstraps in child processes; forked ones would lack JAX's
  # threads.
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
