"""Settings shared by the studies of models of 0.1 M to 1 M parameters.

Proxies of 4 layers, 32 wide, trained on two CPU cores on
experiments/corpora/debian.md, prepared as in experiments/cpu_study.py.
"""

from ml_collections import ConfigDict

from steepest.experiments import base

# Learning rates for updates of Adam's size, of a sign's, and by an angle.
_ADAM = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
_SIGN = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
_ANGLE = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
# By optimizer, for proxies of this size.
RATES = {
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
