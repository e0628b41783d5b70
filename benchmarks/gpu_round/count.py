"""Counts each variant's compiled kernels, for a GPU that need not be here.

    python -m benchmarks.gpu_round.count --row=124m [--layers=2] [--chip=h200]

Needs pip install 'steepest[cuda]'. Prints a line of JSON for each variant: the
kernels of a step, the gigabytes that they read and write at most, by kind, and
the memory beyond the state. XLA cannot autotune as on the device, so its choice
of kernels may differ.
"""

import collections
import json

from absl import app, flags
import jax

from benchmarks import jax_step, shapes
from benchmarks.gpu_round import variants
from steepest.optimizers import build
from steepest.training import chips, run
from steepest.tuning import compiled

_ROW = flags.DEFINE_enum('row', '124m', list(shapes.GPU), 'What is trained.')
_LAYERS = flags.DEFINE_integer('layers', 0, 'Fewer layers; 0: all.')
_CHIP = flags.DEFINE_string('chip', 'h200', 'As launch.bench has them.')
_NAMES = flags.DEFINE_list('variants', None, 'Names; default: all of the row.')


def main(_: list[str]) -> None:
  """Prints the lines."""
  jax.config.update('jax_platforms', 'cpu')
  shape = shapes.GPU[_ROW.value].shape()
  shape['layers'] = _LAYERS.value or shape['layers']
  config, model = jax_step.configure(shape)
  hypers = build.hyperparameters(config.optimizer, config.schedule, 1000)
  devices = compiled.devices(chips.find(_CHIP.value), _CHIP.value, 1)
  setup = run.make_setup(config, model, tuple(devices))
  for name, variant in variants.of_row(_ROW.value).items():
    if _NAMES.value and name not in _NAMES.value:
      continue
    with compiled.capability(devices[0]):
      program = variant.lower(setup, hypers).compile(
        compiler_options=dict(variant.options) or None
      )
    print(json.dumps({'variant': name, **_counted(program)}), flush=True)


def _counted(program: jax.stages.Compiled) -> dict[str, float]:
  """Returns kernels, gigabytes by kind and GiB beyond the arguments."""
  memory = program.memory_analysis()
  kernels = [k for k in compiled.kernels(program.as_text()) if k.steady]
  moved: collections.Counter[str] = collections.Counter()
  for kernel in kernels:
    moved[kernel.kind] += kernel.count * kernel.bytes
  return {
    'kernels': sum(k.count for k in kernels),
    'temporaries_GiB': round(memory.temp_size_in_bytes / 2**30, 3),
    'GB': round(sum(moved.values()) / 1e9, 2),
    **{f'{kind}_GB': round(b / 1e9, 2) for kind, b in moved.most_common()},
  }


if __name__ == '__main__':
  app.run(main)
