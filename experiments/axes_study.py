"""Token budget, schedule and batch size for AdamW, Lion and Sophia-G.

    python -m launch.study --config=experiments/axes_study.py \
        --workdir=runs/axes

What: a LLaMA of 4 layers, 32 wide (0.12 M parameters): 1.2 M tokens, twice and
four times as many, with `wsd`; beside them cosine, and batches of a quarter and
four times the size. Rates, memories, decay and Sophia's rho are searched in
trials a quarter as long, anew for each batch size. Data as
experiments/cpu_study.py says, three seeds. docs/results/axes says what would
count, and has what came out.

Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from steepest.experiments import small


def get_config(arg: str = '') -> ConfigDict:
  """Takes no variant."""
  config, _ = small.get_study_config(arg)
  config.steps = 150
  config.schedule.kind = 'wsd'
  config.schedule.warmup = 0.08
  config.eval_every = 300
  config.eval_sequences = 256
  config.checkpoint_every = 300
  config.study.models = 'llama'
  config.study.width_ratio = 1
  config.study.target_steps = 600
  config.study.axis_tokens = (1, 2, 4)
  config.study.axis_schedule = ('wsd', 'cosine')
  config.study.axis_batch_size = (4, 16, 64)
  config.study.retune = 'batch_size'
  config.study.lrs_adamw = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
  config.study.lrs_lion = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
  config.study.lrs_sophia = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
  return config
