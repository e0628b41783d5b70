"""One description of what is to run, for every place where it may run."""

import ast
import dataclasses
import difflib
import itertools
import pathlib
import re
import shlex
from typing import Any

from ml_collections import ConfigDict

from steepest.experiments import base
from steepest.training import chips

# What training exits with when a signal stopped it: training/interrupts.py.
STOPPED = 75
# What each machine of a study of several does: a Ray of this job alone, which
# the first one heads, where the study, "$@", runs too. Only what a machine
# started is ended. FIRST is the head's HOST:PORT, RANK the machine's number,
# CPUS what it has; the token of RAY_AUTH_TOKEN is the same everywhere.
RAY_NODE = r"""
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
up() { (: < "/dev/tcp/${FIRST%:*}/${FIRST#*:}") 2> /dev/null; }
ray() {
  "$PYTHON" -m ray.scripts.scripts start --block --disable-usage-stats \
    --num-cpus="$CPUS" "$@" > /dev/null &
}
if (( RANK )); then
  until up; do sleep 1; done
  ray --address="$FIRST"
  while up; do sleep 1; done
  kill $!
  exit 0
fi
ray --head --port="${FIRST#*:}" --include-dashboard=false
until up || ! kill -0 $!; do sleep 1; done
"$@" --engine="$FIRST"
status=$?
kill $!
exit $status
"""
# Parts of names whose values would end up in scripts and logs.
_SECRET = re.compile(r'key|token|secret|passw|credential', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Unit:
  """One run: a point of a sweep, or all there is.

  Attributes:
    workdir: of the run, as the machine that trains sees it.
    arguments: of the command, without --workdir.
    point: KEY=VALUE of the sweep; '' without one.
  """

  workdir: str
  arguments: tuple[str, ...]
  point: str = ''

  def command(self, python: str, module: str) -> list[str]:
    """Returns the command line."""
    return [python, '-m', module, *self.arguments, f'--workdir={self.workdir}']


@dataclasses.dataclass(frozen=True)
class Job:
  """What is to run, wherever that is.

  Attributes:
    name: lower-case letters, digits and dashes.
    module: Python module of the command.
    units: runs, independent of each other.
    root: directory that commands run in, or that the place is sent.
    folder: where this machine keeps what is submitted.
    chip: accelerator as in training/chips.py; '': none.
    devices: accelerators of one run; without them, of no meaning.
    nodes: machines of one run where no accelerator says how many.
    processes: of one run; 0: as many as the place starts by itself.
    restarts: times that a run may end without having got further.
    hours: limit of one run; None: the place's own.
    environment: variables of the runs.
    options: of the place, see its OPTIONS.
  """

  name: str
  module: str
  units: tuple[Unit, ...]
  root: pathlib.Path
  folder: pathlib.Path
  chip: str
  devices: int
  nodes: int
  processes: int
  restarts: int
  hours: float | None
  environment: dict[str, str]
  options: dict[str, str]

  @property
  def per_host(self) -> int:
    """Accelerators of one machine that the job uses."""
    return min(self.devices, chips.find(self.chip).host) if self.chip else 0

  @property
  def is_gpu(self) -> bool:
    """Whether the accelerators are GPUs."""
    return bool(self.chip) and chips.find(self.chip).is_gpu

  @property
  def is_study(self) -> bool:
    """Whether the runs are studies: a process each, with slots of its own."""
    return self.module.endswith('.study')

  @property
  def in_buckets(self) -> bool:
    """Whether the runs read or write what lies in buckets."""
    words = [w for unit in self.units for w in (unit.workdir, *unit.arguments)]
    return any('gs://' in word or 's3://' in word for word in words)

  @property
  def hosts(self) -> int:
    """Machines of one run."""
    return -(-self.devices // self.per_host) if self.chip else self.nodes


@dataclasses.dataclass(frozen=True)
class Submission:
  """What a submitter would do.

  Attributes:
    files: text by path, written first.
    commands: argv of each, run one after the other.
    needs: the program that they need, and how to get it.
    secrets: environment variables of the commands, with values drawn anew.
  """

  files: dict[pathlib.Path, str]
  commands: tuple[tuple[str, ...], ...]
  needs: tuple[str, str]
  secrets: tuple[str, ...] = ()

  def describe(self) -> str:
    """Returns all of it as a text."""
    parts = [f'--- {path}\n{text}' for path, text in self.files.items()]
    drawn = [f'{name}=$(openssl rand -hex 32)' for name in self.secrets]
    parts += [
      ' '.join(['$', *drawn, shlex.join(argv)]) for argv in self.commands
    ]
    return '\n'.join(parts)


def name_of(text: str) -> str:
  """Returns a name that SLURM, Kubernetes and Google Cloud all take."""
  name = re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:40].strip('-')
  return name if name[:1].isalpha() else f'run-{name}'.strip('-')


def overrides(values: dict[str, Any]) -> tuple[str, ...]:
  """Returns --config.KEY=VALUE of each."""
  return tuple(f'--config.{key}={value}' for key, value in values.items())


def sweep(
  config: ConfigDict, texts: list[str]
) -> list[tuple[str, dict[str, Any]]]:
  """Returns the points of a sweep: a name, and values by key.

  Args:
    config: that they apply to.
    texts: KEY=VALUE,VALUE,…; several are combined, each with each.

  Raises:
    ValueError: a key is unknown or a value does not fit it.
  """
  axes = []
  for text in texts:
    key, _, rest = text.partition('=')
    values = [_parse(config, key, value) for value in _split(rest)]
    if not values:
      raise ValueError(f'--sweep={text}: give KEY=VALUE,VALUE,…')
    axes.append([(key, value) for value in values])
  if len({axis[0][0] for axis in axes}) < len(axes):
    raise ValueError('--sweep: a key stands in two sweeps')
  points = [dict(point) for point in itertools.product(*axes)]
  names = [
    ','.join(f'{k}={_plain(str(v))}' for k, v in point.items())
    for point in points
  ]
  if len(set(names)) < len(names):
    raise ValueError('--sweep: a value is given twice')
  return list(zip(names, points))


def environment(texts: list[str]) -> dict[str, str]:
  """Returns NAME=VALUE of the flags as a dictionary.

  Raises:
    ValueError: one is malformed, or looks like a secret.
  """
  found = {}
  for text in texts:
    name, equals, value = text.partition('=')
    if not equals or not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_]*', name):
      raise ValueError(f'--env={name}: give NAME=VALUE')
    if _SECRET.search(name):
      raise ValueError(
        f'--env={name}=…: secrets do not belong in scripts: log in on the '
        'machines'
      )
    found[name] = value
  return found


def options(
  texts: list[str], known: dict[str, tuple[str, str]], place: str
) -> dict[str, str]:
  """Returns KEY=VALUE of the flags over the defaults of a place.

  Args:
    texts: of --option.
    known: default and meaning by key; with a key '*', any other goes too but
      for what is nearly one of these or of the names that its default lists.
    place: its name.

  Raises:
    ValueError: one is malformed or unknown.
  """
  found = {key: default for key, (default, _) in known.items() if key != '*'}
  others = known['*'][0].split() if '*' in known else []
  for text in texts:
    key, equals, value = text.partition('=')
    if not equals or not re.fullmatch(r'[a-z][a-z0-9_-]*', key):
      raise ValueError(f'--option={text}: give KEY=VALUE')
    if key not in (names := [*known, *others]):
      near = difflib.get_close_matches(key, names, 1, 0.85 if others else 0.6)
      if near or not others:
        hint = f'did you mean {near[0]}? ' if near else ''
        raise ValueError(
          f'--option={key}: {hint}--to={place} has {", ".join(known)}'
        )
    if '\n' in value:
      raise ValueError(f'--option={key}: one line only')
    found[key] = value
  return found


def _parse(config: ConfigDict, key: str, text: str) -> Any:
  """Returns a value of the type that the key has."""
  leaves = base.flatten(config)
  if key not in leaves:
    near = difflib.get_close_matches(key, leaves, 1, cutoff=0.3)
    hint = f'; did you mean {near[0]}?' if near else ''
    raise ValueError(f'unknown key {key} in --sweep{hint}')
  kind: Any = type(leaves[key])
  try:
    if kind is bool:
      return {'true': True, 'false': False}[text.lower()]
    if kind is tuple:
      return tuple(ast.literal_eval(text))
    return kind(text)
  except (KeyError, ValueError, TypeError, SyntaxError) as error:
    raise ValueError(
      f'--sweep={key}: {text!r} is no {kind.__name__}'
    ) from error


def _split(text: str) -> list[str]:
  """Returns the parts between commas that are not inside brackets."""
  parts = re.findall(r'(?:[^,(\[]|\([^)]*\)|\[[^]]*\])+', text)
  return [part.strip() for part in parts if part.strip()]


def _plain(text: str) -> str:
  """Returns a value as part of a directory's name."""
  return re.sub(r'[^A-Za-z0-9.+-]+', '_', text).strip('_')
