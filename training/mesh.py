"""The device mesh: how logical axes map to it, and compiling for it.

B batch, L length.
"""

from collections.abc import Callable, Mapping
import functools
import math
import os
import pathlib
import re
from typing import Any

from absl import logging
from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.experimental import mesh_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)
from ml_collections import ConfigDict
import numpy as np

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
  ('layers', None),
)

# The same within one copy of the model.
RULES_OF_A_COPY = (('batch', 'fsdp'), *RULES[1:])


_SCHEDULER = 'xla_gpu_enable_latency_hiding_scheduler'
# Not xla_tpu_enable_async_collective_fusion_fuse_all_gather: libtpu 0.0.48 says
# that it may give wrong results on v5p and v6e, and rejects it; with it, some
# steps for v5e did not compile in 25 minutes.
_OPTIONS: dict[str, dict[str, bool]] = {
  'gpu': {_SCHEDULER: True},
  'tpu': {
    'xla_enable_async_all_gather': True,
    'xla_tpu_enable_async_collective_fusion': True,
    'xla_tpu_enable_async_collective_fusion_multiple_steps': True,
    'xla_tpu_overlap_compute_collective_tc': True,
  },
}


def sizes(config: ConfigDict, devices: int) -> dict[str, int]:
  """Returns the size of each axis of the `mesh` slice on `devices` devices.

  Raises:
    ValueError: a size is not positive, there are too few devices, or -1 does
      not divide them.
  """
  found = {axis: config[axis] for axis in AXES}
  if any(n < 1 and (axis, n) != ('data', -1) for axis, n in found.items()):
    raise ValueError(f'mesh: {found}: must be positive (data: or -1)')
  if found['data'] == -1:
    rest = -math.prod(found.values())
    if devices % rest:
      raise ValueError(
        f'mesh: {devices} devices do not divide by fsdp·tensor·sequence = '
        f'{rest}'
      )
    found['data'] = devices // rest
  needed = math.prod(found.values())
  if needed > devices:
    raise ValueError(
      f'mesh: {found} needs {needed} devices, there are {devices}'
    )
  return found


def make_mesh(
  config: ConfigDict, devices: list[jax.Device] | None = None
) -> Mesh:
  """Returns the mesh of the `mesh` slice over `devices`, by default this job's.

  Raises:
    ValueError: as `sizes`, or some of several processes' devices stay idle.
  """
  devices = jax.devices() if devices is None else devices
  found = sizes(config, len(devices))
  needed = math.prod(found.values())
  if needed < len(devices) and jax.process_count() > 1:
    raise ValueError(
      f'mesh: {found} leaves devices of the {jax.process_count()} processes '
      'idle: set mesh.data=-1'
    )
  return Mesh(
    _arranged(found, devices[:needed]),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
  )


def _arranged(
  found: Mapping[str, int], devices: list[jax.Device]
) -> np.ndarray:
  """Returns devices as an array of the axes' sizes, with near ones adjacent.

  Axes with more traffic run along the chips' links. If only a slower network
  joins the devices' slices, `data` spans the slices first, and later axes only
  what it leaves of them.
  """
  slices = len({getattr(device, 'slice_index', None) for device in devices})
  outer, left = [], slices
  for size in found.values():
    outer.append(math.gcd(size, left))
    left //= outer[-1]
  inner = [size // n for size, n in zip(found.values(), outer)]
  # If sizes do not match the chips' grid, two may share a dimension of it.
  how: dict[str, Any] = {'devices': devices, 'allow_split_physical_axes': True}
  try:
    if slices == 1:
      return mesh_utils.create_device_mesh(inner, **how)
    return mesh_utils.create_hybrid_device_mesh(inner, outer, **how)
  except (AssertionError, NotImplementedError, ValueError) as error:
    raise ValueError(
      f'mesh: {dict(found)} does not fit {len(devices)} devices in '
      f'slices={slices}: use all devices of each slice'
    ) from error


def shardings(mesh: Mesh | AbstractMesh, specs: Any) -> Any:
  """Returns NamedShardings of a tree of logical PartitionSpecs."""
  # Flax's annotation omits abstract meshes, which work too.
  return nn.logical_to_mesh_sharding(specs, mesh, RULES)  # type: ignore


def even(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
  """Returns a sharding without the mesh axes that do not divide the array."""
  spec = [
    axes if size % _parts(sharding, axes) == 0 else None
    for size, axes in zip(shape, sharding.spec)
  ]
  return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def over_data(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
  """Returns a sharding that also splits one of the array's axes over `data`.

  This is the first one that divides; vectors and scalars stay as they are.
  """
  spec = [*sharding.spec, *[None] * len(shape)][: len(shape)]
  for i, axes in enumerate(spec if len(shape) > 1 else ()):
    own = (axes,) if isinstance(axes, str) else axes or ()
    if shape[i] % _parts(sharding, (*own, 'data')) == 0:
      spec[i] = (*own, 'data')
      break
  return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def _parts(sharding: NamedSharding, axes: Any) -> int:
  names = (axes,) if isinstance(axes, str) else axes or ()
  return math.prod(sharding.mesh.shape[name] for name in names)


def batch_shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
  """Returns the shardings of B×L token arrays and of arrays with only B."""
  rows = ('data', 'fsdp')
  return (
    NamedSharding(mesh, PartitionSpec(rows, 'sequence')),
    NamedSharding(mesh, PartitionSpec(rows)),
  )


def batch_shapes(
  mesh: Mesh, batch_size: int, context: int, packed: bool, mask: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes, with shardings, of what data/pipeline.py yields.

  Args:
    mesh: the mesh of the devices.
    batch_size: B.
    context: L.
    packed: whether there are segment ids and positions.
    mask: whether there is a mask of rows.
  """
  tokens, rows = batch_shardings(mesh)
  names = ('inputs', 'targets', *(('segment_ids', 'positions') * packed))
  shape = jax.ShapeDtypeStruct(
    (batch_size, context), jnp.int32, sharding=tokens
  )
  shapes = dict.fromkeys(names, shape)
  if mask:
    shapes['mask'] = jax.ShapeDtypeStruct(
      (batch_size,), jnp.float32, sharding=rows
    )
  return shapes


def put_batch(
  mesh: Mesh, batch: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, jax.Array]:
  """Places this process's rows of a batch, `local_rows`, on the mesh."""
  held = local_rows(mesh, batch_size)
  tokens, rows = batch_shardings(mesh)

  def place(values: np.ndarray) -> jax.Array:
    def part(index: Any) -> np.ndarray:
      numbers = range(batch_size)[index[0]]
      first = held.index(numbers[0])
      return values[first : first + len(numbers)][:, *index[1:]]

    return jax.make_array_from_callback(
      (batch_size, *values.shape[1:]),
      tokens if values.ndim == 2 else rows,
      part,
    )

  return {name: place(values) for name, values in batch.items()}


@functools.lru_cache(maxsize=8)
def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
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
  return tuple(sorted(held))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds in full."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(mesh: Mesh, tree: Any) -> Any:
  """Places numbers on every device."""
  return jax.device_put(tree, replicated(mesh))


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
  """Raises a ValueError unless every device has rows for the curvature.

  Args:
    shape: mesh axis → size; see `check` for those that divide.
    batch_size: sequences per step.
    subset: one in `subset` of them is used.
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


def compiled(
  mesh: Mesh,
  fn: Callable[..., Any],
  args: tuple[Any, ...],
  in_shardings: Any,
  out_shardings: Any,
  donate: tuple[int, ...] = (),
  hide: bool = True,
  ahead: bool = True,
) -> Any:
  """Compiles a function for a mesh.

  Args:
    mesh: the mesh of the devices.
    fn: the function.
    args: its arguments, or their shapes.
    in_shardings: of the arguments; None: every device has them in full.
    out_shardings: of its results.
    donate: indices of the arguments that it consumes.
    hide: see `compiler_options`.
    ahead: compile now rather than at the first call.
  """
  jitted = jax.jit(
    fn,
    in_shardings=in_shardings or replicated(mesh),
    out_shardings=out_shardings,
    donate_argnums=donate,
  )

  def later(*args: Any) -> Any:
    with jax.set_mesh(mesh):
      return jitted(*args)

  if not ahead:
    return later
  with jax.set_mesh(mesh):
    return jitted.lower(*args).compile(
      compiler_options=compiler_options(mesh, hide) or None
    )


def keep_programs(directory: pathlib.Path) -> None:
  """Caches JAX's compiled programs there, so that a restart need not compile.

  JAX_COMPILATION_CACHE_DIR, if set, takes precedence. CPUs, where compiling
  takes seconds, cache nothing: programs are for one CPU model, JAX does not
  check it, and the directory may move to another; XLA itself warns that they
  may crash (github.com/jax-ml/jax/issues/38445).
  """
  given = 'JAX_COMPILATION_CACHE_DIR' in os.environ
  if not given and jax.default_backend() != 'cpu':
    compilation_cache.set_cache_dir(str(directory))
    # JAX decides whether to cache only once, at its first compilation.
    compilation_cache.reset_cache()


def compiler_options(mesh: Mesh, hide: bool) -> dict[str, str | bool]:
  """Returns XLA's options for a mesh; those set in XLA_FLAGS stay.

  They let collectives overlap computation on several devices; all are
  documented by the makers (sources in docs/scaling.md). XLA versions add and
  remove options, so any with which a small program that gathers, scatters and
  reduces does not compile are left out.

  Args:
    mesh: the mesh to compile for.
    hide: whether GPUs use the latency-hiding scheduler.
  """
  device = mesh.devices.flat[0]
  if mesh.size == 1 or device.platform not in _OPTIONS:
    return {}
  given = ' '.join(os.getenv(k, '') for k in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS'))
  own = re.findall(r'--(\w+)', given)
  wanted = dict(_OPTIONS[device.platform])
  if _SCHEDULER in wanted and not hide:
    # Set explicitly, since XLA enables it by default.
    wanted[_SCHEDULER] = False
  asked = [(k, v) for k, v in wanted.items() if k not in own]
  return dict(_accepted(tuple(asked), mesh))


_Options = tuple[tuple[str, str | bool], ...]


@functools.cache
def _accepted(options: _Options, mesh: Mesh) -> _Options:
  """Returns the options that this XLA accepts together; logs the others."""
  if not _refusal(options, mesh):
    return options
  kept: _Options = ()
  for option in options:
    if said := _refusal((*kept, option), mesh):
      logging.warning('XLA option %s left out: %s', option[0], said)
    else:
      kept += (option,)
  return kept


def _refusal(options: _Options, mesh: Mesh) -> str:
  """Returns the compiler's objection to options, '' if none.

  It checks some only if the program has a collective that they affect.
  """
  split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  shape = jax.ShapeDtypeStruct(
    (8 * mesh.size, 256), jnp.bfloat16, sharding=split
  )

  def loss(weights: jax.Array, rows: jax.Array) -> jax.Array:
    whole = jax.lax.with_sharding_constraint(weights, PartitionSpec())
    return jnp.square(rows @ whole.T).astype(jnp.float32).mean()

  try:
    with jax.set_mesh(mesh):
      step = jax.jit(
        jax.value_and_grad(loss), out_shardings=(replicated(mesh), split)
      )
      step.lower(shape, shape).compile(compiler_options=dict(options))
  except jax.errors.JaxRuntimeError as error:
    return str(error).splitlines()[0]
  return ''
