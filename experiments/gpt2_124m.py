"""GPT-2 124M: 12 layers of width 768, the shape most results are about.

    python -m launch.train --config=experiments/gpt2_124m.py:sophia \
        --config.data.source=shards:DIR --workdir=runs/gpt2-124m-sophia

What: 10.5 B tokens, 84 per parameter, half a million per step, to compare
with numbers of llm.c and modded-nanogpt. `:adamw`, `:lion` or
`:sophia`; the learning rates are base.py's starting points, not tuned ones.

Hardware: one 80 GB accelerator or a node of eight; with less memory, raise
`microbatches`, which changes nothing else. No scores are given because none
has been measured yet.
"""

from ml_collections import ConfigDict

from steepest.experiments import base


def get_config(arg: str = '') -> ConfigDict:
  """`arg` is `adamw|lion|sophia`."""
  config, words = base.with_variant(arg)
  if 'llama' in words:
    raise ValueError('gpt2_124m is a GPT-2: use experiments/llama_130m.py')
  config.data.source = 'shards:corpora/slimpajama-gpt2'
  # 50257 rounded up to a multiple of 128, for tensor cores and sharding.
  config.model.vocab_size = 50_304
  config.batch_size = 512
  config.microbatches = 8
  config.steps = 20_000
  config.schedule.warmup_steps = 2000
  config.eval_tasks = 'arc_easy,arc_challenge,hellaswag,mmlu'
  return config
