"""The tables of docs/scaling.md: plans against measurements, and large runs.

    python benchmarks/scaling.py

Nothing is compiled or run.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax

from steepest.experiments import base
from steepest.training import chips, planner
from steepest.tuning import plans


class _Measured(NamedTuple):
  """AdamW steps on one H100 80GB, measured on 2026-11-23; 0: not.

  Milliseconds of plain JAX 0.11 with logits in bfloat16 and parameters by
  layer, and of PyTorch 2.11; gigabytes of PyTorch.
  """

  name: str
  model: str
  keys: dict[str, Any]
  jax_ms: float
  torch_ms: float
  torch_gb: float


def _shape(
  layers: int, width: int, heads: int, mlp: int, vocab: int, rows: str
) -> dict[str, Any]:
  batch, context = rows.split(' × ')
  return {
    'model.num_layers': layers,
    'model.width': width,
    'model.num_heads': heads,
    'model.mlp_dim': mlp,
    'model.vocab_size': vocab,
    'model.context': int(context),
    'model.bias': False,
    'batch_size': int(batch),
  }


_MEASURED = [
  _Measured(
    'GPT-2 124M, 64 × 1024',
    'gpt2',
    _shape(12, 768, 12, 3072, 50_304, '64 × 1024'),
    139.1,
    134.4,
    43.8,
  ),
  _Measured(
    'GPT-2 2.65B, 4 × 2048',
    'gpt2',
    _shape(32, 2560, 32, 10_240, 50_304, '4 × 2048'),
    282,
    297,
    64.3,
  ),
  _Measured(
    'GPT-2 51M, 64 × 1024',
    'gpt2',
    _shape(8, 512, 8, 2048, 50_304, '64 × 1024'),
    0,
    65,
    0,
  ),
  _Measured(
    'LLaMA 134M, 64 × 1024',
    'llama',
    _shape(12, 768, 12, 2048, 32_000, '64 × 1024'),
    0,
    147,
    28.3,
  ),
  _Measured(
    'LLaMA 2.70B, 4 × 2048',
    'llama',
    _shape(32, 2560, 20, 6912, 32_000, '4 × 2048'),
    0,
    341,
    63.1,
  ),
]
_LARGE = {
  '2.7B': _shape(32, 2560, 20, 6912, 32_000, '1024 × 2048'),
  '7B': _shape(32, 4096, 32, 11_008, 32_000, '1024 × 4096'),
}


def main() -> None:
  """Prints the tables."""
  # Nothing here needs an accelerator.
  jax.config.update('jax_platforms', 'cpu')
  print(
    '| AdamW | predicted ms | JAX | error | PyTorch | error '
    '| predicted GB | PyTorch | error |'
  )
  print('|---|---|---|---|---|---|---|---|---|')
  for row in _MEASURED:
    plan = _make(row.model, row.keys, 'h100').plan(
      planner.Setting((1, 1, 1, 1), 1, 'none')
    )
    ms, gb = plan.step_seconds * 1e3, plan.peak / 1e9
    cells = [
      row.name,
      f'{ms:.0f}',
      *_against(ms, row.jax_ms),
      *_against(ms, row.torch_ms),
      f'{gb:.1f}',
      *_against(gb, row.torch_gb),
    ]
    print('| ' + ' | '.join(cells) + ' |')
  print(
    '\n| model | chips | data, fsdp, tensor | micro-batches | remat | GiB '
    '| s a step | tokens/s a chip | MFU | sent, GB | network, s |'
  )
  print('|---|---|---|---|---|---|---|---|---|---|---|')
  for name, keys in _LARGE.items():
    for chip in ('h100', 'v5p', 'v5e'):
      made = _make('llama', keys, chip)
      for devices in (8, 64, 256, 1024):
        if devices <= chips.CHIPS[chip].group or chip == 'h100':
          print(_line(name, made, chip, devices))


def _make(model: str, keys: dict[str, Any], chip: str) -> planner.Planner:
  config, _ = base.with_variant(f'{model},adamw')
  config.update_from_flattened_dict(keys)
  return plans.make_planner(config, chips.CHIPS[chip])


def _against(predicted: float, measured: float) -> list[str]:
  if not measured:
    return ['', '']
  return [f'{measured:g}', f'{predicted / measured - 1:+.0%}']


def _line(name: str, made: planner.Planner, chip: str, devices: int) -> str:
  plan = plans.fastest(made, devices)
  if plan is None:
    return f'| {name} | {devices} × {chip} | does not fit |'
  s, tokens = plan.setting, made.batch_size * made.model.context
  cells = [
    name,
    f'{devices} × {chip}',
    ', '.join(str(n) for n in s.mesh[:3]),
    str(s.microbatches),
    s.remat,
    f'{plan.peak / 2**30:.1f}',
    f'{plan.step_seconds:.2f}',
    f'{tokens / plan.step_seconds / devices:,.0f}',
    f'{plan.mfu:.1%}',
    f'{sum(plan.traffic.values()) / 1e9:.1f}',
    f'{plan.seconds["network"]:.2f}',
  ]
  assert math.prod(dataclasses.astuple(s)[0]) == devices
  return '| ' + ' | '.join(cells) + ' |'


if __name__ == '__main__':
  main()
