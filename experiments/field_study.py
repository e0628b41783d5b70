"""Compares every optimizer of the repository on one small LLaMA.

    python -m launch.study --config=experiments/field_study.py \
        --workdir=runs/field

What: LLaMA of 4 layers, proxies 32 wide, targets 64 wide (0.28 M parameters),
2.9 M tokens of experiments/corpora/debian.md in a BPE of 512 entries, prepared
as in experiments/size_study.py: ten per parameter. For each optimizer it
searches everything that has a range in its file, with learning rates over a
factor of sixteen, in trials an eighth as long; three seeds. docs/results/field
has the preregistered criteria, and the results of an earlier version that
searched only learning rates.

Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from steepest.experiments import small

# Learning rates for updates of Adam's size, of a sign's, and by an angle.
_ADAM = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
_SIGN = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
_ANGLE = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
_RATES = {
  'adafactor': _ADAM,
  'adamh': _ANGLE,
  'adamw': _ADAM,
  'ademamix': _ADAM,
  'adopt': _ADAM,
  'cautious_adamw': _ADAM,
  'cautious_lion': _SIGN,
  'dion': _ANGLE,
  'kron': _SIGN,
  'lion': _SIGN,
  'mars': _ADAM,
  'muon': _ADAM,
  'muonh': _ANGLE,
  'nadamw': _ADAM,
  'normuon': _ANGLE,
  'prodigy': (0.25, 0.5, 1.0, 2.0, 4.0),
  'schedule_free': (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2),
  'scion': (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3),
  'signum': _SIGN,
  'soap': _ADAM,
  'sophia': _SIGN,
}


def get_config(arg: str = '') -> ConfigDict:
  """Takes no variant."""
  config, _ = small.get_study_config(arg)
  config.model.vocab_size = 512
  config.steps = 175
  config.schedule.warmup = 0.1
  config.eval_every = 700
  config.eval_sequences = 256
  config.checkpoint_every = 350
  config.data.source = 'shards:runs/corpora/debian-512'
  config.study.models = 'llama'
  config.study.optimizers = 'all'
  config.study.target_steps = 1400
  for name, rates in _RATES.items():
    config.study[f'lrs_{name}'] = rates
  return config
