"""Compares every optimizer of the repository on one small LLaMA.

    python -m launch.study --config=experiments/field_study.py \
        --workdir=runs/field

What: LLaMA of 4 layers, proxies 32 wide, targets 64 wide (0.28 M parameters),
2.9 M tokens of experiments/corpora/debian.md in a BPE of 512 entries, prepared
as in experiments/size_study.py: ten per parameter. For each optimizer it
searches everything that has a range in its file, with learning rates over a
factor of sixteen, in trials an eighth as long; three seeds. docs/results/field
has the criteria, set in advance, and the results.

Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from steepest.experiments import small


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
  for name, rates in small.RATES.items():
    config.study[f'lrs_{name}'] = rates
  return config
