"""LLaMA 134M, with the depth, width and tokens of gpt2_124m.

    python -m launch.train --config=experiments/llama_130m.py:lion \
        --config.data.source=shards:DIR --workdir=runs/llama-130m-lion

What: 12 layers of width 768, SwiGLU of 2048, LLaMA's 32,000 tokens, untied;
otherwise as gpt2_124m, so the two families can be compared. `:adamw`,
`:lion` or `:sophia`; the learning rates are base.py's starting points, not
tuned ones.

Hardware: one 80 GB accelerator or a node of eight; with less memory, raise
`microbatches`, which changes nothing else. No scores are given because none
has been measured yet.
"""

from ml_collections import ConfigDict

from steepest.experiments import base


def get_config(arg: str = '') -> ConfigDict:
  """`arg` is `adamw|lion|sophia`."""
  config, words = base.with_variant(arg)
  if 'gpt2' in words:
    raise ValueError('llama_130m is a LLaMA: use experiments/gpt2_124m.py')
  base.set_model(config, 'llama')
  config.data.source = 'shards:corpora/slimpajama-llama'
  config.model.mlp_dim = 2048
  config.model.vocab_size = 32_000
  config.batch_size = 512
  config.microbatches = 8
  config.steps = 20_000
  config.schedule.warmup_steps = 2000
  config.eval_tasks = 'arc_easy,arc_challenge,hellaswag,mmlu'
  return config
