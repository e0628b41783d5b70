"""The comparison of arXiv 2507.08472: 12 runs of 2.7 B parameters, tuned.

    python -m launch.study --plan --config=experiments/paper_study.py \
        --targets=slurm --chip=h100 --devices=64

What: {GPT-2, LLaMA} × {AdamW, Lion, Sophia-G} × {60 B tokens once, 15 B four
times}. Learning rates, betas, weight decay and ρ are searched on the proxies of
paper_proxy.py, 2.6 B tokens per trial, and transferred to targets ten times as
wide and 23 times as long. The targets are paper_target.py's, except for what a
study must share to compare losses: GPT-2's tokenizer for both models, and for
LLaMA an MLP ten times as wide as the proxy's. One seed, as in the paper, which
says nothing about noise.

Hardware: --plan estimates each part on the given chips. Trials take one chip
each; a target takes the devices of one machine, here 8 of 80 GB, or with
--targets as many machines as --devices need, as a separate job
(docs/launching.md). No scores are given because none has been measured yet.
"""

from ml_collections import ConfigDict

from steepest.experiments import base, paper_proxy, paper_target


def get_config(arg: str = '') -> ConfigDict:
  """Takes no variant."""
  config, _ = base.with_variant(arg, base.get_study_config())
  target = paper_target.get_config('gpt2')
  config.update(paper_proxy.get_config('gpt2').to_dict())
  # 0: each model's own rule; targets have width_ratio times as much.
  config.model.mlp_dim = 0
  config.eval_every = target.eval_every
  config.eval_tasks = target.eval_tasks
  config.study.width_ratio = target.model.width // config.model.width
  config.study.target_steps = target.steps
  config.study.target = {
    'mesh': {'fsdp': target.mesh.fsdp},
    'microbatches': target.microbatches,
    'model': {key: target.model[key] for key in ('remat', 'scan_layers')},
  }
  config.study.seeds = 1
  config.study.axis_epochs = (1, 4)
  return config
