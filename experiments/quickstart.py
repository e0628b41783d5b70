"""AdamW, Lion and Sophia-G on GPT-2 and LLaMA in minutes on two CPU cores.

    make quickstart

Proxies of about 0.1 M parameters, targets twice as wide, 8 MB of English prose
and Python code, a byte-level BPE of 2048 entries. Too small to say which
optimizer is best for a real model: it shows every part of such a study.
"""

from ml_collections import ConfigDict

from steepest.experiments import base


def get_config(arg: str = '') -> ConfigDict:
  """Takes no variant."""
  config, _ = base.with_variant(arg, base.get_study_config())
  # Proxy: heads of 16, so that a target has twice as many of the same.
  config.model.num_layers = 3
  config.model.width = 32
  config.model.num_heads = 2
  config.model.context = 128
  config.batch_size = 8
  config.steps = 500
  config.schedule.warmup_steps = 50
  config.optimizer.hessian_bias_correction = True
  config.dtype.compute = 'float32'
  config.log_every = 1
  config.eval_every = 100
  config.eval_sequences = 64
  config.checkpoint_every = 200
  config.checkpoints_kept = 1
  # A hundred questions of each benchmark: one standard error is 4 to 5 %.
  config.eval_tasks = 'arc_easy,arc_challenge,hellaswag,mmlu'
  config.eval_tasks_limit = 100
  config.data.verify = 'size'
  config.study.target_steps = 800
  config.study.seeds = 2
  config.study.lrs_adamw = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
  config.study.lrs_lion = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
  config.study.lrs_sophia = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
  return config
