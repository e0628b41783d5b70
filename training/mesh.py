"""The device mesh and which logical axis goes where."""

from collections.abc import Mapping
import math
from typing import Any

from flax import linen as nn
import jax
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)
from ml_collections import ConfigDict

from steepest.models.config import ModelConfig

AXES = ('data', 'fsdp', 'tensor', 'sequence')

# Logical axis of a parameter or activation → mesh axes.
RULES = (
  ('batch', ('data', 'fsdp')),
  ('length', 'sequence'),
  ('features', None),
  ('vocab', 'tensor'),
  ('positions', None),
  ('width', 'fsdp'),
  ('heads', 'tensor'),
  ('kv_heads', 'tensor'),
  ('mlp', 'tensor'),
  ('norm', None),
)

# The same for a copy of the model by itself.
RULES_OF_A_COPY = (('batch', 'fsdp'), *RULES[1:])


def make_mesh(
  config: ConfigDict, devices: list[jax.Device] | None = None
) -> Mesh:
  """Returns the mesh of the `mesh` slice over this job's devices, or others.

  Raises:
    ValueError: the sizes ask for more devices than there are, or -1 does not
      divide them.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [config[axis] for axis in AXES]
  if any(size < 1 for size in sizes[1:]) or sizes[0] < -1 or sizes[0] == 0:
    raise ValueError(
      f'mesh: {dict(zip(AXES, sizes))}: must be positive (data: or -1)'
    )
  rest = math.prod(sizes[1:])
  if sizes[0] == -1:
    if len(devices) % rest:
      raise ValueError(
        f'mesh: {len(devices)} devices do not divide by fsdp·tensor·sequence'
        f' = {rest}'
      )
    sizes[0] = len(devices) // rest
  if math.prod(sizes) > len(devices):
    raise ValueError(
      f'mesh: {dict(zip(AXES, sizes))} needs {math.prod(sizes)} devices, '
      f'there are {len(devices)}'
    )
  if math.prod(sizes) < len(devices) and jax.process_count() > 1:
    raise ValueError(
      f'mesh: {dict(zip(AXES, sizes))} leaves devices of the '
      f'{jax.process_count()} processes idle: set mesh.data=-1'
    )
  return jax.make_mesh(
    tuple(sizes),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=devices[: math.prod(sizes)],
  )


def shardings(mesh: Mesh | AbstractMesh, specs: Any) -> Any:
  """Returns NamedShardings of a tree of logical PartitionSpecs."""
  # Flax's annotation does not know that abstract meshes do too.
  return nn.logical_to_mesh_sharding(specs, mesh, RULES)  # type: ignore


def batch_shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
  """Returns the shardings of B×L token arrays and of what has B alone."""
  rows = ('data', 'fsdp')
  return (
    NamedSharding(mesh, PartitionSpec(rows, 'sequence')),
    NamedSharding(mesh, PartitionSpec(rows)),
  )


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
  """Returns the rows of a batch that this process's devices hold.

  Raises:
    ValueError: the batch does not divide.
  """
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  if batch_size % parts:
    raise ValueError(
      f'batch_size={batch_size} is not a multiple of mesh.data·mesh.fsdp = '
      f'{parts}: the next one is {-(-batch_size // parts) * parts}'
    )
  _, sharding = batch_shardings(mesh)
  held: set[int] = set()
  for index in sharding.addressable_devices_indices_map((batch_size,)).values():
    held.update(range(batch_size)[index[0]] if index else ())
  return sorted(held)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def check(
  mesh: Mesh | AbstractMesh,
  model: ModelConfig,
  batch_size: int,
  microbatches: int,
) -> None:
  """Raises a ValueError that names the first size that does not divide."""
  shape = mesh.shape
  rows = shape['data'] * shape['fsdp'] * microbatches
  for what, size, parts, by in (
    ('batch_size', batch_size, rows, 'mesh.data·mesh.fsdp·microbatches'),
    ('model.context', model.context, shape['sequence'], 'mesh.sequence'),
    ('model.width', model.width, shape['fsdp'], 'mesh.fsdp'),
    ('model.num_heads', model.num_heads, shape['tensor'], 'mesh.tensor'),
    (
      'model.num_kv_heads',
      model.num_kv_heads,
      shape['tensor'],
      'mesh.tensor',
    ),
    ('model.mlp_dim', model.mlp_dim, shape['tensor'], 'mesh.tensor'),
    ('model.vocab_size', model.vocab_size, shape['tensor'], 'mesh.tensor'),
  ):
    if size % parts:
      raise ValueError(
        f'{what}={size} is not a multiple of {by} = {parts}: the next one is'
        f' {-(-size // parts) * parts}'
      )


def check_subset(
  shape: Mapping[str, int], batch_size: int, subset: int
) -> None:
  """Raises a ValueError where not every device has rows for the curvature.

  Args:
    shape: axis of the mesh → size; see `check` for those that divide.
    batch_size: sequences of a step.
    subset: one of so many of them is used.
  """
  rows = batch_size // (shape['data'] * shape['fsdp'])
  if rows % subset == 0:
    return
  small = [n for n in range(1, math.isqrt(rows) + 1) if rows % n == 0]
  larger = [n for d in small for n in (d, rows // d) if n > subset]
  hint = f'next one is {min(larger)}' if larger else f'largest one is {rows}'
  raise ValueError(
    f'optimizer.hessian_subset={subset} does not divide '
    f'batch_size/(mesh.data·mesh.fsdp) = {rows}: the {hint}'
  )
