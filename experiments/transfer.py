"""Whether the best learning rate stays where it is as models widen.

    python -m launch.transfer --config=experiments/transfer.py \
        --workdir=runs/transfer

What: GPT-2 and LLaMA, AdamW, Lion and Sophia-G, µP and the standard
parametrization, widths 16 to 128 of 2 layers, a grid of rates in factors of
two, three seeds (two of them around the best rate of the first), on real
text (English prose and Python code) in a byte-level BPE of 512 entries. Heads
have 16 features at every width; their number grows, as in launch.study.
docs/results/transfer has what came out.

Words after a colon, such as `:llama,lion,no_gain`, take some of the cells
and change one thing: `fixed_rho` (Sophia's rho does not grow with the width),
`no_gain` (norms without gains), `zero_init` (readout and queries start at
zero; LLaMA only, GPT-2's readout is tied) and the decay modes `independent`,
`times_lr` and `times_role_lr`, each with a decay that can be felt.

Hardware: about an hour on two idle CPU cores. With `--config.model.width=128
--config.model.num_heads=8 --config.steps=2000` it is an experiment for an
accelerator.
"""

from ml_collections import ConfigDict

from steepest.experiments import base

# A fifth to a third of a weight in 300 steps. At Lion's best rate of 8e-3 all
# modes take as much from a weight of the base.
_DECAYS = {'independent': 2e-3, 'times_lr': 0.25, 'times_role_lr': 0.25}
_CHANGES = ('fixed_rho', 'no_gain', 'zero_init', *_DECAYS)


def get_config(arg: str = '') -> ConfigDict:
  """`arg` is any of the words above; without one, the whole matrix."""
  config, words = base.with_variant(
    arg, base.get_transfer_config(), extra=_CHANGES
  )
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
  t.refine = 1
  for key in ('models', 'optimizers'):
    kept = [name for name in t[key].split(',') if name in words]
    t[key] = ','.join(kept) or t[key]
  _change(config, words)
  return config


def _change(config: ConfigDict, words: frozenset[str]) -> None:
  """Applies the words of `_CHANGES`."""
  if words & set(_CHANGES):
    config.transfer.parametrizations = 'mup'
  config.parametrization.scale_rho = 'fixed_rho' not in words
  config.model.norm_gain = 'no_gain' not in words
  config.model.zero_init_query = 'zero_init' in words
  config.model.zero_init_readout = 'zero_init' in words
  for mode in words & set(_DECAYS):
    config.optimizer.decay_mode = mode
    config.optimizer.weight_decay = _DECAYS[mode]
