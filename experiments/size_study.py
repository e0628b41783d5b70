"""Tests whether an optimizer's advantage over AdamW lasts as models grow.

    python -m launch.study --config=experiments/size_study.py \
        --workdir=runs/sizes/adamw
    python -m launch.study --config=experiments/size_study.py:others \
        --workdir=runs/sizes/others
    python -m launch.report --runs=runs/sizes/adamw,runs/sizes/others \
        --out=runs/sizes/report

What: LLaMAs of 4 layers, 32, 64 and 128 wide (0.09, 0.28 and 0.98 M
parameters), three seeds. AdamW reads 10, 20 and 40 tokens per parameter, which
gives its loss as a function of both; with `others`, Lion, Sophia-G, Muon and
MuonH read 20 (`--optimizers=NAME` adds any). Hyperparameters are searched once,
at width 32, and transferred to the other sizes by µP and by horizons as
fractions of a run. `gpu`: 8 layers, 128, 256 and 512 wide (2.7, 8.5 and 30 M),
the same ratios, with a context of 512; `launch.pack` splits it into parts as
long as a machine is available. docs/results/atlas has the preregistered
criteria.

Data: experiments/corpora/debian.md in a BPE of 512 entries, or for `gpu` a
sample of SlimPajama in one of 4096:

    python experiments/corpora/debian.py --out=corpus
    python -m launch.prepare --input='corpus/*.jsonl' \
        --tokenizer=bpe-train:512 --out=runs/corpora/debian-512 \
        --shard_tokens=8388608
    python -m launch.prepare --input=slimpajama-6b \
        --tokenizer=bpe-train:4096 --out=runs/corpora/slimpajama-4096

Hardware: two CPU cores; `gpu`: one GPU.
"""

from ml_collections import ConfigDict

from steepest.experiments import small


def get_config(arg: str = '') -> ConfigDict:
  """`arg` is `others`, `gpu`, both or neither."""
  config, words = small.get_study_config(arg, ('others', 'gpu'))
  # On a CPU, a long context and heads of fewer features cost more than they do
  # by FLOPs.
  config.model.context = 64
  config.batch_size = 32
  config.model.num_heads = 1
  config.model.vocab_size = 512
  config.steps = 400
  config.schedule.warmup = 0.05
  config.eval_every = 0
  config.eval_sequences = 512
  config.checkpoint_every = 500
  config.data.source = 'shards:runs/corpora/debian-512'
  study = config.study
  study.models = 'llama'
  study.optimizers = 'lion,sophia,muon,muonh' if 'others' in words else 'adamw'
  study.width_ratio = 1
  study.axis_width = (1, 2, 4)
  study.axes_mode = 'product'
  study.tokens_per_parameter = 20.0
  study.axis_tokens = () if 'others' in words else (0.5, 1, 2)
  if 'gpu' in words:
    config.model.num_layers = 8
    config.model.width = 128
    config.model.num_heads = 2
    config.model.context = 512
    config.model.vocab_size = 4096
    config.batch_size = 64
    config.eval_sequences = 256
    config.steps = 800
    config.dtype.compute = 'bfloat16'
    config.data.source = 'shards:runs/corpora/slimpajama-4096'
    config.data.verify = 'sampled'
  else:
    for name, rates in small.RATES.items():
      study[f'lrs_{name}'] = rates
  return config
