"""Plans of a run's configuration, and settings that fit where it does not."""

import dataclasses
import math
import pathlib
from typing import Any

from flax import linen as nn
import jax
from ml_collections import ConfigDict

from steepest.data import flat, manifest
from steepest.models import (
  config as model_config,
  parametrization,
  remat as remat_lib,
)
from steepest.optimizers import build
from steepest.training import (
  chips,
  flops,
  mesh as mesh_lib,
  planner,
)

# Settings that are proposed.
_PROPOSALS = 3


def chip(name: str) -> chips.Chip:
  """Returns the accelerator of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in chips.CHIPS:
    raise ValueError(f'--chip={name}: there are {", ".join(chips.CHIPS)}')
  return chips.CHIPS[name]


def make_planner(config: ConfigDict, chip: chips.Chip) -> planner.Planner:
  """Returns the planner of a run.

  Raises:
    ValueError: the configuration does not fit together.
  """
  o = config.optimizer
  model = model_config.resolve(config.model, vocab_size(config), config.dtype)
  rules = lambda m: parametrization.resolve(config.parametrization, m)
  find = model_config.find_model
  curvature, subset = 0.0, 1
  if build.build(o, config.schedule, None).wants_curvature:
    subset = o.hessian_subset
    curvature = flops.of_estimate(o.hessian_estimator, subset) / o.hessian_every

  def chain(params: Any) -> build.Chain:
    is_leaf = lambda x: isinstance(x, nn.LogicallyPartitioned)
    factors = jax.tree.map(
      lambda p: rules(model).factors(p.role), params, is_leaf=is_leaf
    )
    return build.build(o, config.schedule, factors)

  return planner.Planner(
    model,
    lambda m: find(m.name).Model(m, rules(m)),
    chain,
    curvature,
    subset,
    config.batch_size,
    chip,
  )


def vocab_size(config: ConfigDict) -> int:
  """Returns the rows of the embedding, from the data where need be.

  Raises:
    ValueError: nothing says how many.
  """
  if config.model.vocab_size:
    return config.model.vocab_size
  kind, _, name = config.data.source.partition(':')
  path = pathlib.Path(name).expanduser()
  if kind == 'shards' and (path / 'manifest.json').exists():
    return manifest.load(path).tokenizer.vocab_size
  if kind == 'flat' and path.exists():
    return flat.contents(path).max_id + 1
  raise ValueError(
    f'model.vocab_size=0 and data.source={config.data.source!r} is not here: '
    'set model.vocab_size'
  )


def setting(config: ConfigDict, devices: int) -> planner.Setting:
  """Returns the setting that a configuration asks for on `devices`.

  Raises:
    ValueError: the mesh does not fit them.
  """
  sizes = [config.mesh[axis] for axis in mesh_lib.AXES]
  rest = math.prod(sizes[1:])
  if sizes[0] == -1 and rest > 0:
    if devices % rest:
      raise ValueError(
        f'mesh: {devices} devices do not divide by fsdp·tensor·sequence = '
        f'{rest}'
      )
    sizes[0] = devices // rest
  if math.prod(sizes) != devices or min(sizes) < 1:
    raise ValueError(
      f'mesh: {dict(zip(mesh_lib.AXES, sizes))} is not for {devices} devices: '
      'set mesh.data=-1'
    )
  return planner.Setting(
    (sizes[0], sizes[1], sizes[2], sizes[3]),
    config.microbatches,
    config.model.remat,
  )


def that_fit(
  plans: planner.Planner, wanted: planner.Setting
) -> list[planner.Plan]:
  """Returns the nearest settings that fit, those with the fewest changes first.

  Of several that change the same keys, the fastest, and of those as fast the
  nearest. Where none fits on as many devices, on twice as many, and so on.
  """
  devices = wanted.devices
  while devices <= 2**14:
    best: dict[frozenset[str], planner.Plan] = {}
    for candidate in _candidates(plans, wanted, devices):
      try:
        plan = plans.plan(candidate)
      except ValueError:
        continue
      keys = frozenset(changes(wanted, candidate))
      order = lambda p: (round(p.step_seconds, 3), _distance(wanted, p.setting))
      if plan.fits and (keys not in best or order(plan) < order(best[keys])):
        best[keys] = plan
    if best:
      ranked = sorted(best, key=lambda k: (len(k), best[k].step_seconds))
      return [best[keys] for keys in ranked[:_PROPOSALS]]
    devices *= 2
  return []


def fastest(plans: planner.Planner, devices: int) -> planner.Plan | None:
  """Returns the fastest plan that fits; of those as fast, the simplest."""
  simple = planner.Setting((devices, 1, 1, 1), 1, 'none')
  found = []
  for candidate in _candidates(plans, simple, devices):
    try:
      found.append(plans.plan(candidate))
    except ValueError:
      continue
  return min(
    (plan for plan in found if plan.fits),
    key=lambda p: (round(p.step_seconds, 3), _distance(simple, p.setting)),
    default=None,
  )


def _distance(wanted: planner.Setting, found: planner.Setting) -> float:
  """Returns how many times sizes were doubled or halved."""
  pairs = zip(
    (*wanted.mesh, wanted.microbatches), (*found.mesh, found.microbatches)
  )
  return sum(abs(math.log2(a / b)) for a, b in pairs)


def changes(
  wanted: planner.Setting, found: planner.Setting
) -> dict[str, int | str]:
  """Returns the configuration keys on which two settings differ."""
  keys: dict[str, int | str] = {}
  if wanted.devices != found.devices:
    keys['devices'] = found.devices
  for axis, a, b in zip(mesh_lib.AXES, wanted.mesh, found.mesh):
    # The axis data takes what is left.
    if a != b and axis != 'data':
      keys[f'mesh.{axis}'] = b
  if wanted.microbatches != found.microbatches:
    keys['microbatches'] = found.microbatches
  if wanted.remat != found.remat:
    keys['model.remat'] = found.remat
  return keys


def _candidates(
  plans: planner.Planner, wanted: planner.Setting, devices: int
) -> list[planner.Setting]:
  powers = lambda most: [2**i for i in range(most.bit_length()) if 2**i <= most]
  found = []
  for tensor in {wanted.mesh[2], *powers(8)}:
    rest = devices // (tensor * wanted.mesh[3])
    for fsdp in {wanted.mesh[1], *powers(rest), rest}:
      if not rest or rest % fsdp:
        continue
      mesh = (rest // fsdp, fsdp, tensor, wanted.mesh[3])
      if math.prod(mesh) != devices:
        continue
      most = plans.batch_size // (mesh[0] * mesh[1])
      for slices in {wanted.microbatches, *powers(most)}:
        for remat in remat_lib.POLICIES:
          found.append(
            dataclasses.replace(
              wanted, mesh=mesh, microbatches=slices, remat=remat
            )
          )
  return found
