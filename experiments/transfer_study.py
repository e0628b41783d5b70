"""Tests whether the best learning rates and betas stay as models grow.

    python -m launch.study --config=experiments/transfer_study.py:gpt2 \
        --workdir=runs/transfer-gpt2

What: AdamW, Lion and Sophia-G in µP and in the standard parametrization, 2
layers of width 16 to 128; at each width a grid of learning rates in factors of
two with two seeds, on real text (English prose and Python code) in a byte-level
BPE of 512 entries. Heads have 16 features at every width; their number grows.
`:gpt2` or `:llama`, one model per study, since their curvatures, and so
Sophia's rho, differ in scale. Half-lives are the same for all three optimizers.
docs/results/transfer has the preregistered criteria and the results.

Further words change one thing, under µP only: `b1` and `b2` (half-lives in
factors of four with each learning rate, at the narrowest and the widest) and
`depth` (2 to 8 layers under CompleteP instead of widths).

Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from steepest.experiments import base

# Half-lives in tokens, of 0.75 to 48 steps.
_HALF_LIVES = (384, 1536, 6144, 24_576)
_MEMORIES = ('b1', 'b2')
_CHANGES = (*_MEMORIES, 'depth')


def get_config(arg: str = '') -> ConfigDict:
  """`arg` is `gpt2|llama` and any of the words above."""
  config, words = base.with_variant(
    arg, base.get_study_config(), extra=_CHANGES
  )
  config.model.num_layers = 2
  config.model.width = 16
  config.model.num_heads = 1
  config.model.context = 64
  config.batch_size = 8
  config.steps = 300
  config.schedule.warmup = 0.1
  # 3 and 12 steps, for every optimizer.
  config.optimizer.b1_half_life = 1536.0
  config.optimizer.b2_half_life = 6144.0
  # A run is far too short for the curvature's average to warm up.
  config.optimizer.hessian_bias_correction = True
  # Near the base's best learning rate, 10 to 50 % of coordinates are unclipped.
  config.optimizer.rho = 0.03 if config.model.name == 'llama' else 0.25
  config.dtype.compute = 'float32'
  config.eval_every = 0
  config.eval_sequences = 64
  config.checkpoint_every = 0
  config.data.verify = 'size'
  study = config.study
  study.models = config.model.name
  study.vocab_size = 512
  study.search = 'grid'
  study.lrs_adamw = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
  study.lrs_lion = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
  study.lrs_sophia = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
  study.trial_seeds = 2
  study.width_ratio = 1
  study.axis_width = (1, 2, 4, 8)
  study.axis_parametrization = () if words & set(_CHANGES) else ('mup', 'sp')
  study.axes_mode = 'product'
  study.retune = 'width,parametrization'
  study.target_steps = config.steps
  # The trials are compared, not the targets.
  study.seeds = 1
  for name in words & set(_MEMORIES):
    study[f'space_{name}_half_life'] = _HALF_LIVES
    study.axis_width, study.trial_seeds = (1, 8), 1
    # A grid grows only around its best point, so it must have learning rates on
    # both sides of each half-life's best.
    study.lrs_adamw = study.lrs_adamw[1:5]
    study.lrs_lion, study.lrs_sophia = study.lrs_lion[2:], study.lrs_sophia[2:]
  if 'depth' in words:
    config.parametrization.depth_rule = 'completep'
    study.axis_width, study.axis_depth = (), (1, 2, 4)
    study.retune = 'depth'
  return config
