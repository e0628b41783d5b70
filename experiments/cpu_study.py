"""AdamW, Lion and Sophia-G on 1 M parameters, one epoch against four.

    python -m launch.study --config=experiments/cpu_study.py --workdir=runs/cpu

What: GPT-2 and LLaMA of 4 layers, proxies 64 wide, targets 128 wide (1.1 M and
1.4 M parameters), 1.6 M tokens of experiments/corpora/debian.md in a byte-level
BPE of 2048 entries, read once or a quarter of them four times. Learning rates
in factors of two, three seeds. docs/results/study has what came out.

    python experiments/corpora/debian.py --out=corpus
    python -m launch.prepare --input='corpus/*.jsonl' \
        --tokenizer=bpe-train:2048 --out=runs/corpora/debian \
        --shard_tokens=8388608

Hardware: two CPU cores; 3.8 hours of one of them, which were busy besides.
"""

from ml_collections import ConfigDict

from steepest.experiments import base


def get_config(arg: str = '') -> ConfigDict:
  """Takes no variant."""
  config, _ = base.with_variant(arg, base.get_study_config())
  config.model.num_layers = 4
  config.model.width = 64
  config.model.num_heads = 4
  config.model.context = 256
  config.batch_size = 8
  config.steps = 600
  config.schedule.warmup_steps = 60
  # A run is far too short for the curvature's average to fill.
  config.optimizer.hessian_bias_correction = True
  config.dtype.compute = 'float32'
  config.eval_every = 250
  config.eval_sequences = 128
  config.checkpoint_every = 500
  config.checkpoints_kept = 1
  config.eval_tasks = 'arc_easy,arc_challenge,hellaswag,mmlu'
  # One standard error of a score is about 2 %.
  config.eval_tasks_limit = 500
  config.data.source = 'shards:runs/corpora/debian'
  config.data.verify = 'size'
  config.study.target_steps = 800
  config.study.seeds = 3
  config.study.axis_epochs = (1, 4)
  config.study.lrs_adamw = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
  config.study.lrs_lion = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
  config.study.lrs_sophia = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
  return config
