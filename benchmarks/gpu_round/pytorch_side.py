"""PyTorch's side of run.py: a process that times a model's steps.

    python benchmarks/gpu_round/pytorch_side.py

Needs only torch. Each line of its input is JSON: a SHAPE of
../pytorch_baseline.py to build and compile, or {"steps": N} to run. It answers
each with a line of measurements.
"""

import gc
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import pytorch_baseline
import torch


def main() -> None:
  """Answers until its input ends."""
  # Compilers print as well, so they get another output.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  trainer = None
  for line in sys.stdin:
    asked = json.loads(line)
    if 'steps' in asked:
      found = {'seconds': trainer.seconds(asked['steps'])}
    else:
      trainer = None
      gc.collect()
      torch.compiler.reset()
      if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
      trainer = pytorch_baseline.Trainer(asked)
      first = trainer.seconds(1)
      trainer.seconds(2)
      found = {
        'name': f'PyTorch {torch.__version__}',
        'first_step_seconds': first,
        'GB': trainer.memory() / 1e9,
        'parameters': sum(p.numel() for p in trainer.model.parameters()),
      }
    print(json.dumps(found), file=answers, flush=True)


if __name__ == '__main__':
  main()
