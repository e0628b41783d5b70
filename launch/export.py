"""Writes a trained model as a directory for `transformers` and vLLM.

    python -m launch.export --model=ckpt:runs/tiny --out=DIR

Writes config.json, generation_config.json, model.safetensors (float32),
tokenizer.json and tokenizer_config.json to DIR. Multipliers of µP and of a
depth rule are folded into the weights, so the logits do not change.
"""

import os
import pathlib
import shutil

from steepest.launch import cli


def main() -> None:
  """The command."""
  model = cli.define_required(
    'model', 'ckpt:WORKDIR or hf:DIR.', 'ckpt:WORKDIR'
  )
  out = cli.define_required('out', 'Directory to write; new or empty.', 'DIR')
  export = lambda: _export(model.value, out.value)
  cli.run(export, __doc__, addresses=('out',))


def _export(spec: str, out: str) -> None:
  from steepest.data import buckets

  with buckets.staged(out, 'exporting there') as stage:
    _write(spec, stage.directory.absolute(), out)


def _write(spec: str, directory: pathlib.Path, out: str) -> None:
  if directory.is_dir() and any(directory.iterdir()):
    raise FileExistsError(f'--out={out} is not empty: give a new directory')
  if directory.exists() and not directory.is_dir():
    raise FileExistsError(f'--out={out} is a file: give a new directory')
  # JAX takes seconds to start; --help and errors need not wait.
  import jax

  from steepest.models import huggingface_export
  from steepest.training import loading

  model = loading.load_model(spec)
  tokenizer = model.tokenizer
  tokenizer.model_max_length = model.max_length
  part = directory.with_name(f'.{directory.name}.{os.getpid()}')
  part.mkdir(parents=True)
  try:
    tokenizer.save(part)
    huggingface_export.write(
      part, model.params, model.rules, tokenizer.bos_id, tokenizer.eos_id
    )
    os.replace(part, directory)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  count = sum(p.size for p in jax.tree.leaves(model.params))
  steps = model.description.get('steps')
  after = f' after {steps} steps' if steps is not None else ''
  print(f'{model.rules.model.name}, {count:,} parameters{after}: {directory}')


if __name__ == '__main__':
  main()
