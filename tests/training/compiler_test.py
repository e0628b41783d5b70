"""Options of XLA: those that this version has, and no others."""

import jax
import pytest

from steepest.training import mesh as mesh_lib


class _Mesh:
  """As much of a mesh as is asked for, of a platform that is not here."""

  def __init__(self, size, platform):
    class _Device:
      pass

    _Device.platform = platform
    self.size, self.devices = size, self
    self.flat = [_Device()]


@pytest.fixture
def tried(monkeypatch):
  names = []

  def accept(name, value, mesh):
    names.append(name)
    return 'fuse_all_gather' not in name

  monkeypatch.setattr(mesh_lib, '_accepts', accept)
  return names


@pytest.fixture
def mesh():
  auto = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((8,), ('data',), axis_types=auto)


def test_options_of_gpus_are_known_to_this_version(mesh):
  """XLA checks their names on whatever it compiles for."""
  for name, value in mesh_lib._OPTIONS['gpu'].items():
    assert mesh_lib._accepts(name, value, mesh)


def test_an_unknown_option_is_left_out_with_a_word(caplog, mesh):
  # Where programs are compiled, their mesh is set.
  with jax.set_mesh(mesh):
    assert not mesh_lib._accepts('xla_gpu_no_such', True, mesh)
  assert "No such compile option: 'xla_gpu_no_such'" in caplog.text


def test_one_device_and_a_cpu_need_none(tried):
  assert mesh_lib.compiler_options(_Mesh(1, 'gpu'), 'none') == {}
  assert mesh_lib.compiler_options(_Mesh(8, 'cpu'), 'none') == {}
  assert not tried


def test_what_is_accepted_is_used(tried):
  found = mesh_lib.compiler_options(_Mesh(8, 'tpu'), 'full')
  assert found.keys() < mesh_lib._OPTIONS['tpu'].keys()
  assert len(found) == len(tried) - 1 == 4


def test_the_users_own_choice_stays(tried, monkeypatch):
  name = 'xla_gpu_enable_latency_hiding_scheduler'
  monkeypatch.setenv('XLA_FLAGS', f'--{name}=false')
  assert mesh_lib.compiler_options(_Mesh(8, 'gpu'), 'none') == {}
  assert not tried


def test_nothing_undoes_full_recomputation(tried):
  for remat in ('none', 'names', 'dots'):
    assert (
      mesh_lib.compiler_options(_Mesh(8, 'gpu'), remat)
      == mesh_lib._OPTIONS['gpu']
    )
  found = mesh_lib.compiler_options(_Mesh(8, 'gpu'), 'full')
  assert found == dict.fromkeys(mesh_lib._OPTIONS['gpu'], False)
