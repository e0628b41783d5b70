"""Tests which other settings change the ranking of optimizers.

    python -m launch.study --config=experiments/lessons_study.py:llama,b1 \
        --workdir=runs/lessons-b1

What: AdamW, Lion and Sophia-G on a model of 2 layers, 32 wide, for 300 steps,
two seeds: every pair of four learning rates and four values of the word's
setting; `b1` and `decay`, which are horizons, also for 1,200 steps. Everything
else is as in experiments/transfer_study.py. docs/results/lessons has the
preregistered criteria and the results.

`b1` varies the half-life of the first average, in tokens; `decay` the share of
the run in which decay takes a weight to 1/e; `clip` the largest norm of the
gradient; `warmup` the share of the run that warms up. `batch` has batches of a
quarter and of four times the sequences at equal tokens.

Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from steepest.experiments import base, transfer_study

_SETTINGS = {
  # In tokens: 0.75 to 48 steps.
  'b1': ('b1_half_life', (384.0, 1536.0, 6144.0, 24_576.0)),
  # A value and the next have equal decay per step at the two lengths.
  'decay': ('decay_timescale', (0.25, 1.0, 4.0, 16.0)),
  'clip': ('clip_norm', (0.03, 0.1, 0.3, 1.0)),
  'warmup': ('warmup', (0.01, 0.03, 0.1, 0.3)),
}
_HORIZONS = ('b1', 'decay')
_BATCH = 'batch'


def get_config(arg: str = '') -> ConfigDict:
  """`arg` is `gpt2|llama` and one of the words above."""
  _, words = base.with_variant(arg, extra=(*_SETTINGS, _BATCH))
  settings = words & {*_SETTINGS, _BATCH}
  model = ','.join(words - settings)
  config = transfer_study.get_config(model)
  config.model.width = 32
  config.model.num_heads = 2
  study = config.study
  study.axis_width = study.axis_parametrization = ()
  study.axes_mode, study.retune = 'one_at_a_time', ''
  study.lrs_adamw = (4e-3, 8e-3, 1.6e-2, 3.2e-2)
  study.lrs_lion = (2e-3, 4e-3, 8e-3, 1.6e-2)
  study.lrs_sophia = (2e-3, 4e-3, 8e-3, 1.6e-2)
  if _BATCH in settings:
    study.axis_batch_size, study.retune = (2, 32), 'batch_size'
  for word in settings - {_BATCH}:
    name, values = _SETTINGS[word]
    study[f'space_{name}'] = values
    if word in _HORIZONS:
      study.axis_tokens, study.retune = (1, 4), 'tokens'
  return config
