"""Settings shared by the studies of models of 0.1 M to 1 M parameters.

Proxies of 4 layers, 32 wide, trained on two CPU cores on
experiments/corpora/debian.md, prepared as in experiments/cpu_study.py.
"""

from ml_collections import ConfigDict

from steepest.experiments import base


def get_study_config(
  arg: str, extra: tuple[str, ...] = ()
) -> tuple[ConfigDict, frozenset[str]]:
  """Returns the configuration and the words of `arg`; see base.with_variant."""
  config, words = base.with_variant(arg, base.get_study_config(), extra)
  config.model.num_layers = 4
  config.model.width = 32
  config.model.num_heads = 2
  config.model.context = 128
  config.batch_size = 16
  # Runs are far too short for the curvature's average to warm up.
  config.optimizer.hessian_bias_correction = True
  config.dtype.compute = 'float32'
  config.checkpoints_kept = 1
  config.data.source = 'shards:runs/corpora/debian'
  config.data.verify = 'size'
  config.study.pruning = 'median'
  config.study.seeds = 3
  return config, words
