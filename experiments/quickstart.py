"""Compares AdamW, Lion and Sophia-G in minutes on two CPU cores.

    make quickstart

GPT-2 and LLaMA targets of 0.3 to 0.5 M parameters, proxies a quarter as wide, 8
MB of English prose and Python code, a byte-level BPE of 2048 entries. Learning
rate, betas, weight decay and Sophia's ρ are searched in trials a fifth as long
as a target's run and transferred by µP and horizons. The study has every part
of a real one, but is too small to say which optimizer is best for a real model.
"""

from ml_collections import ConfigDict

from steepest.experiments import base


def get_config(arg: str = '') -> ConfigDict:
  """Takes no variant."""
  config, _ = base.with_variant(arg, base.get_study_config())
  # The proxy has one head of 16 features, the target four.
  config.model.num_layers = 3
  config.model.width = 16
  config.model.num_heads = 1
  config.model.context = 128
  config.batch_size = 8
  config.steps = 120
  config.schedule.warmup = 0.1
  config.optimizer.hessian_bias_correction = True
  config.dtype.compute = 'float32'
  config.log_every = 1
  config.eval_every = 100
  config.eval_sequences = 64
  config.checkpoint_every = 200
  config.checkpoints_kept = 1
  # With a hundred questions a benchmark, the standard error is 4 to 5 %.
  config.eval_tasks = 'arc_easy,arc_challenge,hellaswag,mmlu'
  config.eval_tasks_limit = 100
  config.data.verify = 'size'
  config.study.pruning = 'median'
  config.study.width_ratio = 4
  config.study.target_steps = 600
  config.study.seeds = 2
  config.study.lrs_adamw = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
  config.study.lrs_lion = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
  config.study.lrs_sophia = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
  return config
