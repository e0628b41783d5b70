"""Loads trained models for scoring, export or chat."""

import dataclasses
import functools
import math
import pathlib
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from ml_collections import ConfigDict

from steepest.data import buckets, tokenizers
from steepest.experiments import base
from steepest.models import (
  config as model_config,
  decoding,
  huggingface,
  parametrization,
)
from steepest.training import (
  config as config_lib,
  mesh as mesh_lib,
  run,
  state as state_lib,
)
from steepest.training.checkpoint import Checkpointer


class LoadedModel(NamedTuple):
  """A trained model.

  Attributes:
    features_fn: gives what scores are computed from; see eval/likelihoods.py.
    params: on the devices.
    tokenizer: the one that it was trained with.
    rules: its shapes and multipliers.
    description: where it comes from, as JSON values.
  """

  features_fn: Any
  params: Any
  tokenizer: tokenizers.Tokenizer
  rules: parametrization.Parametrization
  description: dict[str, Any]

  @property
  def max_length(self) -> int:
    """Longest input, in tokens."""
    return self.rules.model.context

  def sampler(self, mesh: Mesh | None) -> decoding.Sampler:
    """Returns a sampler for parameters on `mesh`."""
    # Without a backward pass there is nothing to rematerialise.
    model = dataclasses.replace(self.rules.model, remat='none')
    rules = dataclasses.replace(self.rules, model=model)
    module = model_config.find_model(model.name).Model(model, rules)
    return decoding.Sampler(
      functools.partial(decoding.extend, module),
      functools.partial(decoding.make_cache, model),
      self.tokenizer.vocab_size,
      mesh,
    )


def load_model(spec: str) -> LoadedModel:
  """Loads `hf:DIR` or `ckpt:WORKDIR`, which may be in a bucket.

  Raises:
    ValueError: it is neither, or the contents do not fit.
  """
  kind, _, directory = spec.partition(':')
  if kind == 'hf' and directory:
    return _load_hf(str(buckets.read(directory)), directory)
  if kind == 'ckpt' and directory:
    workdir = buckets.read(directory, buckets.newest)
    named = directory if buckets.is_address(directory) else str(workdir)
    return _load_checkpoint(workdir, named)
  raise ValueError(f'--model={spec}: give hf:DIR or ckpt:WORKDIR')


def replicate(params: Any) -> tuple[Any, Mesh | None]:
  """Returns the parameters and their mesh.

  Parameters on one device are copied to all devices, which then share the rows.
  """
  sharding = jax.tree.leaves(params)[0].sharding
  if isinstance(sharding, NamedSharding):
    assert isinstance(sharding.mesh, Mesh)  # Arrays are on real devices.
    return params, sharding.mesh
  if jax.device_count() == 1:
    return params, None
  mesh = Mesh(jax.devices(), ('data',), axis_types=(AxisType.Auto,))
  return jax.device_put(params, mesh_lib.replicated(mesh)), mesh


def _load_hf(directory: str, named: str) -> LoadedModel:
  config = base.get_config()
  config.model.update(huggingface.read_config(directory))
  config.dtype.compute = 'float32'
  model = model_config.resolve(config.model, 0, config.dtype)
  rules = parametrization.resolve(config.parametrization, model)
  module = model_config.find_model(model.name).Model(model, rules)
  return LoadedModel(
    lambda params, *inputs: module.apply({'params': params}, *inputs, True),
    jax.device_put(huggingface.read_params(directory, model)),
    tokenizers.load(f'hf:{directory}'),
    rules,
    {'model': f'hf:{named}'},
  )


def _load_checkpoint(workdir: pathlib.Path, named: str) -> LoadedModel:
  if not (workdir / 'config.json').exists():
    raise FileNotFoundError(f'ckpt:{workdir}: no config.json, so it is no run')
  if not (workdir / 'tokenizer.json').exists():
    raise FileNotFoundError(
      f'ckpt:{workdir}: no tokenizer.json; a run on a flat token file has '
      'none: copy the one that made the tokens there'
    )
  config = config_lib.read_config(workdir)
  tokenizer = tokenizers.load(f'hf:{workdir}')
  config.model.vocab_size = config.model.vocab_size or tokenizer.vocab_size
  # One sequence per device: the mesh must fit the model, not a batch.
  config.batch_size, config.microbatches = jax.device_count(), 1
  config.model.scan_layers = False
  model = model_config.resolve(config.model, tokenizer.vocab_size, config.dtype)
  _fit_mesh(config.mesh, model.width)
  setup = run.make_setup(config, model)
  checkpointer = Checkpointer(workdir / 'checkpoints', 1, read_only=True)
  steps = checkpointer.latest()
  if steps is None:
    raise FileNotFoundError(
      f'ckpt:{workdir}: no complete checkpoint; train with '
      'checkpoint_every above 0'
    )
  rules = parametrization.resolve(config.parametrization, model)
  if setup.chain.evaluates_others:
    state, _ = checkpointer.restore_run(setup, steps)
    params = state_lib.evaluation_params(setup, state)
  else:
    params = checkpointer.restore_model(setup, steps)
  return LoadedModel(
    setup.features,
    params,
    tokenizer,
    rules,
    {'model': f'ckpt:{named}', 'steps': steps},
  )


def _fit_mesh(mesh: ConfigDict, width: int) -> None:
  """Adapts the mesh to this job's devices if the run had different ones."""
  try:
    mesh_lib.make_mesh(mesh)
  except ValueError:
    fsdp = math.gcd(width, jax.device_count())
    mesh.update({'data': -1, 'fsdp': fsdp, 'tensor': 1, 'sequence': 1})
