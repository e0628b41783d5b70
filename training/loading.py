"""Loads trained models, to be scored, exported or talked to."""

import dataclasses
import functools
import math
import pathlib
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from ml_collections import ConfigDict

from steepest.data import tokenizers
from steepest.models import (
  config as model_config,
  decoding,
  huggingface,
  parametrization,
)
from steepest.training import (
  config as validation,
  mesh as mesh_lib,
  run as assemble,
)
from steepest.training.checkpoint import Checkpointer


class LoadedModel(NamedTuple):
  """A trained model, ready to be scored.

  Attributes:
    logits_fn: (params, tokens B×L) → float32 logits B×L×V.
    features_fn: what scores are computed from; see eval/likelihoods.py.
    extend_fn: what texts are continued with; see models/decoding.py.
    make_cache: (rows, length) → its empty cache.
    params: on the devices.
    tokenizer: that goes with it.
    max_length: most tokens that go in.
    description: where it is from, JSON values.
    rules: its shapes and multipliers.
  """

  logits_fn: Any
  features_fn: Any
  extend_fn: Any
  make_cache: Any
  params: Any
  tokenizer: tokenizers.Tokenizer
  max_length: int
  description: dict[str, Any]
  rules: parametrization.Parametrization


def load_model(spec: str) -> LoadedModel:
  """Loads `hf:DIR` or `ckpt:WORKDIR`.

  Raises:
    ValueError: it is neither, or what is there does not fit.
  """
  kind, _, directory = spec.partition(':')
  if kind == 'hf' and directory:
    return _load_hf(directory)
  if kind == 'ckpt' and directory:
    return _load_checkpoint(pathlib.Path(directory))
  raise ValueError(f'--model={spec}: give hf:DIR or ckpt:WORKDIR')


def spread(params: Any) -> tuple[Any, Mesh | None]:
  """Returns the parameters and the mesh that they lie on.

  Parameters of one device are copied to all others, which share the rows.
  """
  sharding = jax.tree.leaves(params)[0].sharding
  if isinstance(sharding, NamedSharding):
    assert isinstance(sharding.mesh, Mesh)  # An array lies on real devices.
    return params, sharding.mesh
  if jax.device_count() == 1:
    return params, None
  mesh = jax.make_mesh(
    (jax.device_count(),), ('data',), axis_types=(AxisType.Auto,)
  )
  return jax.device_put(params, mesh_lib.replicated(mesh)), mesh


def _load_hf(directory: str) -> LoadedModel:
  from steepest.experiments import base

  config = base.get_config()
  config.model.update(huggingface.read_config(directory))
  config.dtype.compute = 'float32'
  model = model_config.resolve(config.model, 0, config.dtype)
  rules = parametrization.resolve(config.parametrization, model)
  module = model_config.find_model(model.name).Model(model, rules)
  return LoadedModel(
    lambda params, *inputs: module.apply({'params': params}, *inputs),
    lambda params, *inputs: module.apply({'params': params}, *inputs, True),
    *_decoding(rules),
    jax.device_put(huggingface.read_params(directory, model)),
    tokenizers.load(f'hf:{directory}'),
    model.context,
    {'model': f'hf:{directory}'},
    rules,
  )


def _load_checkpoint(workdir: pathlib.Path) -> LoadedModel:
  if not (workdir / 'config.json').exists():
    raise FileNotFoundError(f'ckpt:{workdir}: no config.json, not a run')
  if not (workdir / 'tokenizer.json').exists():
    raise FileNotFoundError(
      f'ckpt:{workdir}: no tokenizer.json; a run on a flat token file has '
      'none, put the one that made the tokens there'
    )
  config = validation.read_config(workdir)
  tokenizer = tokenizers.load(f'hf:{workdir}')
  config.model.vocab_size = config.model.vocab_size or tokenizer.vocab_size
  # One sequence a device: the mesh must fit the model, not a batch.
  config.batch_size, config.microbatches = jax.device_count(), 1
  model = model_config.resolve(config.model, tokenizer.vocab_size, config.dtype)
  _fit_mesh(config.mesh, model.width)
  program = assemble.make_program(config, model)
  checkpointer = Checkpointer(workdir / 'checkpoints', 1, read_only=True)
  steps = checkpointer.latest()
  if steps is None:
    raise FileNotFoundError(
      f'ckpt:{workdir}: no complete checkpoint; train with '
      'checkpoint_every above 0'
    )
  rules = parametrization.resolve(config.parametrization, model)
  if program.chain.evaluates_others:
    state, _ = checkpointer.restore(program.state_shapes, steps)
    params = program.evaluation_params(state)
  else:
    params = checkpointer.restore_params(program.state_shapes.params, steps)
  return LoadedModel(
    program.logits,
    program.features,
    *_decoding(rules),
    params,
    tokenizer,
    model.context,
    {'model': f'ckpt:{workdir}', 'steps': steps},
    rules,
  )


def _decoding(rules: parametrization.Parametrization) -> tuple[Any, Any]:
  """Returns what extends a text, and what makes its cache."""
  # Nothing is differentiated, so nothing is recomputed.
  model = dataclasses.replace(rules.model, remat='none')
  rules = dataclasses.replace(rules, model=model)
  module = model_config.find_model(model.name).Model(model, rules)
  return (
    functools.partial(decoding.extend, module),
    functools.partial(decoding.make_cache, model),
  )


def _fit_mesh(mesh: ConfigDict, width: int) -> None:
  """Splits the model over the devices here where the run had others."""
  try:
    mesh_lib.make_mesh(mesh)
  except ValueError:
    fsdp = math.gcd(width, jax.device_count())
    mesh.update({'data': -1, 'fsdp': fsdp, 'tensor': 1, 'sequence': 1})
