"""The smallest complete run: seconds on any CPU.

    python -m launch.train --config=experiments/tiny.py:gpt2,adamw \
        --config.data.source=flat:tokens.npy --workdir=runs/tiny

0.1 M parameters; no evaluation and no checkpoint unless you ask for them.
"""

from ml_collections import ConfigDict

from steepest.experiments import base


def get_config(arg: str = '') -> ConfigDict:
  """`arg` is `gpt2|llama,adamw|lion|sophia`, or another optimizer's name."""
  config, _ = base.with_variant(arg)
  config.model.num_layers = 2
  config.model.width = 64
  config.model.num_heads = 4
  config.model.context = 64
  config.parametrization.base_width = 64
  config.parametrization.base_head_dim = 16
  # Other optimizers keep the learning rate of their files.
  lrs = {'adamw': 1e-3, 'lion': 3e-4, 'sophia': 3e-4}
  if config.optimizer.name in lrs:
    config.optimizer.lr = lrs[config.optimizer.name]
  config.optimizer.hessian_bias_correction = True
  config.schedule.warmup_steps = 10
  config.batch_size = 8
  config.steps = 50
  config.log_every = 1
  config.eval_every = 0
  config.eval_sequences = 0
  config.checkpoint_every = 0
  config.dtype.compute = 'float32'
  return config
