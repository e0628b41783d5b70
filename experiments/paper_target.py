"""The 2.7 B models of arXiv 2507.08472 on 60 B tokens.

    python -m launch.train --config=experiments/paper_target.py:gpt2,lion \
        --config.data.source=shards:DIR --config.optimizer.lr=BEST \
        --config.seed=0 --workdir=runs/target/gpt2-lion/seed=0

What: paper_proxy.py ten times as wide and longer, otherwise unchanged. BEST is
the proxy's best learning rate, transferred by µP.
`:gpt2|llama,adamw|lion|sophia,single|multi`: `single` reads 60 B tokens of
SlimPajama once, `multi` 15 B of them four times.

The paper does not give these, so they are our choices: 32 layers, 20 heads of
128 features (GPT-3 2.7B has 32 of 80; the proxy's head size transfers better),
SwiGLU of 6912, batch, schedule.

Hardware: 6·N·D is 1e21 FLOPs per run. Parameters and optimizer state are
sharded over the 8 accelerators of a node (`mesh.fsdp`), 80 GB each, and
replicated over nodes. Micro-batches and recomputation are for eight of them; on
more, `launch.bench --plan` names faster keys that fit. No scores are given
because none has been measured yet.
"""

from ml_collections import ConfigDict

from steepest.experiments import paper_proxy

_TOKENS = 60e9


def get_config(arg: str = '') -> ConfigDict:
  """`arg` is `gpt2|llama,adamw|lion|sophia,single|multi`."""
  config = paper_proxy.get_config(arg)
  config.stage = 'final'
  model = config.model
  model.width = 2560
  model.num_heads = 20
  model.mlp_dim = 6912 if model.name == 'llama' else 10_240
  model.remat = 'full'
  model.scan_layers = True
  config.mesh.fsdp = 8
  config.microbatches = 4
  config.steps = round(_TOKENS / (config.batch_size * model.context))
  config.eval_every = 2000
  config.eval_tasks = 'arc_easy,arc_challenge,hellaswag,mmlu'
  return config
