"""Proxies of 39 M and 44 M to tune the comparison of arXiv 2507.08472.

    python -m launch.train --config=experiments/paper_proxy.py:gpt2,lion \
        --config.data.source=shards:DIR --config.optimizer.lr=4e-4 \
        --workdir=runs/proxy/gpt2-lion/lr=4e-4

What: the targets of paper_target.py at a tenth of the width. Depth, context,
batch, vocabulary and head size are the targets', since µP promises transfer
only across width; warm-up and decay are the same fractions of the run.
`:gpt2|llama,adamw|lion|sophia,single|multi`: `multi` reads a quarter of the
tokens four times. experiments/paper_study.py searches learning rates, betas and
weight decay in the same way for each optimizer.

The paper does not give shapes, batch, schedule or the 2.6 B tokens of a trial;
these are our choices. Sophia's curvature is bias-corrected here and in the
targets, because a trial is too short for the average to warm up.

Hardware: one accelerator of 24 GB or more for each trial; trials are
independent. No scores are given because none has been measured yet.
"""

from ml_collections import ConfigDict

from steepest.experiments import base


def get_config(arg: str = '') -> ConfigDict:
  """`arg` is `gpt2|llama,adamw|lion|sophia,single|multi`."""
  config, words = base.with_variant(arg, extra=('single', 'multi'))
  if {'single', 'multi'} <= words:
    raise ValueError('single and multi exclude each other in --config')
  config.stage = 'tune'
  config.data.epochs = 4 if 'multi' in words else 1
  model = config.model
  model.num_layers = 32
  model.width = 256
  model.head_dim = 128
  model.num_heads = 2
  model.context = 2048
  if model.name == 'llama':
    # 8/3·width rounded up to a multiple of 256, as in the target.
    model.mlp_dim = 768
    model.vocab_size = 32_000
    config.data.source = 'shards:corpora/slimpajama-llama'
  else:
    model.mlp_dim = 1024
    # 50257 rounded up to a multiple of 128, for tensor cores and sharding.
    model.vocab_size = 50_304
    config.data.source = 'shards:corpora/slimpajama-gpt2'
  config.parametrization.base_width = model.width
  config.parametrization.base_num_heads = model.num_heads
  config.parametrization.base_head_dim = model.head_dim
  config.parametrization.base_mlp_dim = model.mlp_dim
  config.optimizer.hessian_bias_correction = True
  config.batch_size = 256
  config.microbatches = 32
  config.steps = 5000
  # Shares of the run: the target's run is 23 times as long.
  config.schedule.warmup = 0.02
  config.optimizer.decay_timescale = 0.1
  config.eval_every = 0
  return config
