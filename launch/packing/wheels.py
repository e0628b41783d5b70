"""Wheels of what the package needs, for a platform and a Python of any place.

pip downloads them, without looking at what they need in turn: it would do that
for the Python that it runs on itself.
"""

from collections.abc import Collection, Iterable
import email
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import zipfile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

# Needed by tensorflow-datasets, and published as source alone, pure Python.
_SOURCES = ('promise',)
# The oldest glibc that a manylinux tag names.
_OLDEST = 5
_PLATFORM = re.compile(r'manylinux_2_(\d+)_(x86_64|aarch64)')
# Its names of glibc before there were numbers.
_OLD_NAMES = {5: 'manylinux1', 12: 'manylinux2010', 17: 'manylinux2014'}


def check(platform: str, python: str) -> None:
  """Raises a ValueError unless there may be wheels for these."""
  if not _PLATFORM.fullmatch(platform):
    raise ValueError(
      f'--platform={platform}: give manylinux_2_N_x86_64 or …_aarch64; N is at '
      "most that of the machine's glibc 2.N (ldd --version)"
    )
  if not re.fullmatch(r'3\.\d+', python):
    raise ValueError(f'--python={python}: give 3.11 or later, such as 3.12')


def listed(path: pathlib.Path) -> frozenset[str]:
  """Returns the packages in what `pip list` or `pip freeze` printed.

  Raises:
    ValueError: there is none.
  """
  lines = path.read_text('utf-8').splitlines()
  found = (
    re.match(r'([A-Za-z0-9][\w.-]*)(\s*==|\s*@|\s+\d)', x) for x in lines
  )
  names = frozenset(canonicalize_name(match[1]) for match in found if match)
  if not names:
    raise ValueError(
      f'--have={path}: holds no package; give what pip list says'
    )
  return names


def download(
  out: pathlib.Path,
  platform: str,
  python: str,
  extras: Iterable[str],
  have: Collection[str],
) -> None:
  """Downloads all that the package needs, each in the version that is here.

  Args:
    out: directory of the wheels.
    platform: 'manylinux_2_28_x86_64', as `check` takes it.
    python: '3.12'.
    extras: of the package, such as 'cuda'.
    have: packages that are there; what they need is there too.

  Raises:
    OSError: pip could not get one.
  """
  environment = _environment(platform, python)
  texts = importlib.metadata.requires('steepest') or []
  wanted = _needs(texts, extras, environment)
  met: set[tuple[str, frozenset[str]]] = set()
  got: set[str] = set()
  while wanted:
    new: dict[str, Requirement] = {}
    again: list[Requirement] = []
    for requirement in wanted:
      name = canonicalize_name(requirement.name)
      key = name, frozenset(requirement.extras)
      if name not in have and key not in met:
        met.add(key)
        again.append(requirement)
        if name not in got:
          new.setdefault(name, requirement)
    _get(list(new.values()), out, platform, python)
    got |= set(new)
    wanted = []
    for requirement in again:
      text = _metadata(out, canonicalize_name(requirement.name))
      wanted += _needs(text, requirement.extras, environment)
  if got:
    # Installs the others there.
    _get([Requirement('pip')], out, platform, python)


def _environment(platform: str, python: str) -> dict[str, str]:
  """Returns what markers are looked up in."""
  match = _PLATFORM.fullmatch(platform)
  assert match is not None
  return {
    'implementation_name': 'cpython',
    'os_name': 'posix',
    'platform_machine': match[2],
    'platform_python_implementation': 'CPython',
    'platform_system': 'Linux',
    'python_full_version': f'{python}.0',
    'python_version': python,
    'sys_platform': 'linux',
  }


def _needs(
  texts: Iterable[str], extras: Iterable[str], environment: dict[str, str]
) -> list[Requirement]:
  """Returns the requirements that hold in an environment."""
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
  """Downloads wheels; what is installed here has its version here."""
  installed = {
    canonicalize_name(found.name): found.version
    for found in importlib.metadata.distributions()
  }
  built: list[str] = []
  wheels: list[str] = []
  for requirement in requirements:
    name = canonicalize_name(requirement.name)
    text = f'{requirement.name}{requirement.specifier}'
    # The pip of here may be older than the Python of there.
    if name != 'pip' and name in installed:
      text = f'{requirement.name}=={installed[name]}'
    (built if name in _SOURCES else wheels).append(text)
  match = _PLATFORM.fullmatch(platform)
  assert match is not None
  numbers = range(int(match[1]), _OLDEST - 1, -1)
  tags = [f'manylinux_2_{n}_{match[2]}' for n in numbers]
  tags += [f'{_OLD_NAMES[n]}_{match[2]}' for n in numbers if n in _OLD_NAMES]
  foreign = [f'--platform={tag}' for tag in tags]
  foreign += [f'--python-version={python}', '--implementation=cp']
  foreign += ['--only-binary=:all:']
  for command, where, texts in (
    (['download', *foreign], f'--dest={out}', wheels),
    (['wheel'], f'--wheel-dir={out}', built),
  ):
    if not texts:
      continue
    command = [sys.executable, '-m', 'pip', *command, where, '--no-deps']
    command += ['--quiet', '--disable-pip-version-check', *texts]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
      lines = done.stderr.strip().splitlines() or ['no message']
      raise OSError(
        f'pip has no wheel for Python {python} on {platform}: {lines[-1]}; try '
        'another --python, or --have what the machine has'
      )


def _metadata(out: pathlib.Path, name: str) -> list[str]:
  """Returns what the wheel of a package needs."""
  [path] = [
    path
    for path in out.glob('*.whl')
    if parse_wheel_filename(path.name)[0] == name
  ]
  with zipfile.ZipFile(path) as wheel:
    [member] = [
      member
      for member in wheel.namelist()
      if member.count('/') == 1 and member.endswith('.dist-info/METADATA')
    ]
    text = wheel.read(member).decode()
  return email.message_from_string(text).get_all('Requires-Dist') or []
