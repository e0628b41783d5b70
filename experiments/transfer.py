"""Whether the best learning rate stays where it is as models widen.

    python -m launch.transfer --config=experiments/transfer.py \
        --workdir=runs/transfer

What: GPT-2 and LLaMA, AdamW, Lion and Sophia-G, µP and the standard
parametrization, widths 16 to 128 of 2 layers, a grid of rates in factors of
two, three seeds, on real text (English prose and Python code) in a
byte-level BPE of 512 entries. Heads have 16 features at every width; their
number grows, as in launch.study. docs/results/transfer has what came out.

Hardware: about an hour on two idle CPU cores. With `--config.model.width=128
--config.steps=2000` it is an experiment for an accelerator.
"""

from ml_collections import ConfigDict

from steepest.experiments import base


def get_config(arg: str = '') -> ConfigDict:
  """Takes no variant."""
  config, _ = base.with_variant(arg, base.get_transfer_config())
  config.model.num_layers = 2
  config.model.width = 16
  config.model.num_heads = 1
  config.model.context = 64
  config.batch_size = 8
  config.steps = 300
  config.schedule.warmup_steps = 30
  # A run is far too short for the curvature's average to fill.
  config.optimizer.hessian_bias_correction = True
  config.dtype.compute = 'float32'
  config.log_every = 10
  config.eval_every = 0
  config.eval_sequences = 64
  config.checkpoint_every = 0
  config.data.verify = 'size'
  t = config.transfer
  t.lrs_adamw = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
  t.lrs_lion = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
  t.lrs_sophia = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
  # At the base 10 to 50 % of the coordinates are unclipped near the best rate.
  t.rho_gpt2 = 0.25
  t.rho_llama = 0.03
  return config
