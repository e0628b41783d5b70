"""Compares AdamW, Lion and Sophia-G on GPT-2 and LLaMA, one epoch and four.

    python -m launch.study --config=experiments/cpu_study.py --workdir=runs/cpu

What: 4 layers, proxies 32 wide, targets 64 wide (0.3 M parameters); 3.5 M
tokens of experiments/corpora/debian.md in a byte-level BPE of 1024 entries,
more than ten per parameter, read once, or a quarter of them four times.
Learning rates, betas, weight decay and Sophia's rho are searched in trials a
fifth as long and transferred; four seeds. docs/results/study has the
preregistered criteria and the results.

    python experiments/corpora/debian.py --out=corpus
    python -m launch.prepare --input='corpus/*.jsonl' \
        --tokenizer=bpe-train:1024 --out=runs/corpora/debian \
        --shard_tokens=8388608

Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from steepest.experiments import small


def get_config(arg: str = '') -> ConfigDict:
  """Takes no variant."""
  config, _ = small.get_study_config(arg)
  config.steps = 340
  config.schedule.warmup = 0.05
  config.eval_every = 425
  config.eval_sequences = 128
  config.checkpoint_every = 425
  config.eval_tasks = 'arc_easy,arc_challenge,hellaswag,mmlu'
  # The standard error of a score is then about 3 %.
  config.eval_tasks_limit = 200
  config.study.target_steps = 1700
  config.study.seeds = 4
  config.study.axis_epochs = (1, 4)
  config.study.lrs_adamw = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
  config.study.lrs_lion = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
  config.study.lrs_sophia = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
  return config
