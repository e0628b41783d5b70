"""Wheels of the package's dependencies, for another platform and Python.

This resolves the dependencies and pip only downloads each: pip would resolve
them for the Python that it runs on.
"""

from collections.abc import Collection, Iterable
import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# A dependency of tensorflow-datasets, pure Python published only as source.
_SOURCES = ('promise',)
# The oldest glibc of a manylinux tag: 2.5.
_OLDEST = 5
_PLATFORM = re.compile(r'manylinux_2_(\d+)_(x86_64|aarch64)')
# Tags older than the numbered ones, by glibc 2.N.
_OLD_NAMES = {5: 'manylinux1', 12: 'manylinux2010', 17: 'manylinux2014'}


def check(platform: str, python: str) -> None:
  """Raises a ValueError if the platform or Python is malformed."""
  if not _PLATFORM.fullmatch(platform):
    raise ValueError(
      f'--platform={platform}: give manylinux_2_N_x86_64 or …_aarch64; N is at '
      "most that of the machine's glibc 2.N (ldd --version)"
    )
  if not re.fullmatch(r'3\.\d+', python):
    raise ValueError(f'--python={python}: give 3.11 or later, such as 3.12')


def listed(path: pathlib.Path) -> frozenset[str]:
  """Returns the packages in the output of `pip list` or `pip freeze`.

  Raises:
    ValueError: it has none.
  """
  lines = path.read_text('utf-8').splitlines()
  found = (
    re.match(r'([A-Za-z0-9][\w.-]*)(\s*==|\s*@|\s+\d)', x) for x in lines
  )
  names = frozenset(canonicalize_name(match[1]) for match in found if match)
  if not names:
    raise ValueError(
      f'--have={path}: names no package; give the output of pip list'
    )
  return names


def download(
  out: pathlib.Path,
  platform: str,
  python: str,
  extras: Iterable[str],
  have: Collection[str],
) -> None:
  """Downloads the package's dependencies, in the versions installed here.

  Args:
    out: directory of the wheels.
    platform: as in `check`, such as 'manylinux_2_28_x86_64'.
    python: such as '3.12'.
    extras: of the package, such as 'cuda'.
    have: packages of the target machine, taken to have their dependencies.

  Raises:
    OSError: pip could not download one.
  """
  environment = _environment(platform, python)
  texts = importlib.metadata.requires('steepest') or []
  wanted = _needs(texts, extras, environment)
  met, got = set[str](), set[str]()
  while new := {
    str(r): r
    for r in wanted
    if str(r) not in met and canonicalize_name(r.name) not in have
  }:
    met |= new.keys()
    names = {canonicalize_name(r.name): r for r in new.values()}
    _get([names[n] for n in names.keys() - got], out, platform, python)
    got |= names.keys()
    wanted = [
      needed
      for r in new.values()
      for needed in _needs(_metadata(out, r.name), r.extras, environment)
    ]
  if got:
    # Installs the other wheels there.
    _get([Requirement('pip')], out, platform, python)


def _environment(platform: str, python: str) -> dict[str, str]:
  """Returns the target's values of environment markers (PEP 508)."""
  return {
    'implementation_name': 'cpython',
    'os_name': 'posix',
    'platform_machine': platform.split('_', 3)[3],
    'platform_python_implementation': 'CPython',
    'platform_system': 'Linux',
    'python_full_version': f'{python}.0',
    'python_version': python,
    'sys_platform': 'linux',
  }


def _needs(
  texts: Iterable[str], extras: Iterable[str], environment: dict[str, str]
) -> list[Requirement]:
  """Returns the requirements that apply in an environment."""
  found = []
  for requirement in map(Requirement, texts):
    marker = requirement.marker
    if marker is None or any(
      marker.evaluate({**environment, 'extra': extra})
      for extra in ('', *extras)
    ):
      requirement.marker = None
      found.append(requirement)
  return found


def _get(
  requirements: Iterable[Requirement],
  out: pathlib.Path,
  platform: str,
  python: str,
) -> None:
  """Downloads wheels; packages installed here keep their version."""
  installed = {
    canonicalize_name(found.name): found.version
    for found in importlib.metadata.distributions()
  }
  texts: dict[bool, list[str]] = {False: [], True: []}
  for requirement in requirements:
    name = canonicalize_name(requirement.name)
    text = f'{requirement.name}{requirement.specifier}'
    # This machine's pip may be too old for the target's Python.
    if name != 'pip' and name in installed:
      text = f'{requirement.name}=={installed[name]}'
    texts[name in _SOURCES].append(text)
  _, _, newest, machine = platform.split('_', 3)
  numbers = range(int(newest), _OLDEST - 1, -1)
  tags = [f'manylinux_2_{n}' for n in numbers]
  tags += [_OLD_NAMES[n] for n in numbers if n in _OLD_NAMES]
  foreign = [f'--platform={tag}_{machine}' for tag in tags]
  foreign += [f'--python-version={python}', '--implementation=cp']
  foreign += ['--only-binary=:all:']
  for command, chosen in (
    (['download', *foreign, f'--dest={out}'], texts[False]),
    (['wheel', f'--wheel-dir={out}'], texts[True]),
  ):
    if not chosen:
      continue
    command = [sys.executable, '-m', 'pip', *command, '--no-deps', '--quiet']
    command += ['--disable-pip-version-check', *chosen]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and importlib.util.find_spec('pip') is None:
      raise OSError(
        f'{sys.executable} has no pip to download wheels: install it'
      )
    if done.returncode:
      lines = done.stderr.strip().splitlines() or ['no message']
      raise OSError(
        f'pip finds no wheel for Python {python} on {platform}: {lines[-1]}; '
        'try another --python, or list what the machine has in --have'
      )


def _metadata(out: pathlib.Path, name: str) -> list[str]:
  """Returns the requirements of a downloaded package."""
  wheels = list(map(str, out.glob('*.whl')))
  [found] = importlib.metadata.distributions(name=name, path=wheels)
  return found.requires or []
