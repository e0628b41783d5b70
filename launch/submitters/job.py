"""Description of a job that every place can run."""

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

# Exit status of training that a signal stopped: training/interrupts.py.
STOPPED = 75
# Script of each machine of a study on several. They form a Ray cluster of this
# job alone; the first machine is its head and runs the study, "$@". Each stops
# only the processes that it started. FIRST is the head's HOST:PORT, RANK the
# machine's number, CPUS its number of cores; RAY_AUTH_TOKEN is the same on all.
RAY_NODE = r"""
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
up() { (: < "/dev/tcp/${FIRST%:*}/${FIRST#*:}") 2> /dev/null; }
ray() {
  "$PYTHON" -m ray.scripts.scripts start --block --disable-usage-stats \
    --num-cpus="$CPUS" "$@" > /dev/null &
}
if (( RANK )); then
  until up; do sleep 1; done
  # Ray gives up on a head that is slow to start; it may also never join one.
  for (( tries = 10; tries > 0; tries-- )); do
    up || exit 0
    ray --address="$FIRST"
    while up && kill -0 $! 2> /dev/null; do sleep 1; done
    kill $! 2> /dev/null
    sleep 1
  done
  echo "Ray cannot join $FIRST: the study goes on without this machine" >&2
  exit 0
fi
ray --head --port="${FIRST#*:}" --include-dashboard=false
until up || ! kill -0 $!; do sleep 1; done
"$@" --engine="$FIRST"
status=$?
kill $!
exit $status
"""
# Parts of secrets' names: their values would end up in scripts and logs.
_SECRET = re.compile(r'key|token|secret|passw|credential', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Unit:
  """One run of a job, or one study.

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
  """Runs to submit, and what they need.

  Attributes:
    name: lower-case letters, digits and dashes.
    module: Python module of the command.
    units: runs, independent of each other.
    root: directory that commands run in, or that is sent to the place.
    folder: this machine's directory of submitted files.
    chip: accelerator as in training/chips.py; '': none.
    devices: accelerators of one run; without a chip, meaningless.
    nodes: machines of one run without accelerators.
    processes: of one run; 0: the place's own number.
    restarts: times that a run may fail without progress.
    hours: time limit of one run; None: the place's own.
    environment: variables of the runs.
    options: of the place; see its OPTIONS.
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
  """Files to write and commands to run.

  Attributes:
    files: text by path, written first.
    commands: argv of each, run one after the other.
    needs: the program that they need, and how to get it.
    secrets: environment variables of the commands, random for each command.
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
  """Returns a flag --config.KEY=VALUE for each value."""
  return tuple(f'--config.{key}={value}' for key, value in values.items())


def sweep(
  config: ConfigDict, texts: list[str]
) -> list[tuple[str, dict[str, Any]]]:
  """Returns the points of a sweep: a name, and values by key.

  Args:
    config: configuration that has the keys.
    texts: KEY=VALUE,VALUE,…; several make a grid.

  Raises:
    ValueError: a key is unknown or a value has the wrong type.
  """
  axes = []
  for text in texts:
    key, _, rest = text.partition('=')
    values = [_parse(config, key, value) for value in _split(rest)]
    if not values:
      raise ValueError(f'--sweep={text}: give KEY=VALUE,VALUE,…')
    axes.append([(key, value) for value in values])
  if len({axis[0][0] for axis in axes}) < len(axes):
    raise ValueError('--sweep: two sweeps have the same key')
  points = [dict(point) for point in itertools.product(*axes)]
  names = [
    ','.join(f'{k}={_plain(str(v))}' for k, v in point.items())
    for point in points
  ]
  if len(set(names)) < len(names):
    raise ValueError('--sweep: a value is given twice')
  return list(zip(names, points))


def environment(texts: list[str]) -> dict[str, str]:
  """Returns the variables of --env flags.

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
  """Returns a place's options: its defaults, overridden by --option flags.

  Args:
    texts: KEY=VALUE of each flag.
    known: default and meaning by key. A key '*' accepts other keys too; its
      default lists their names, and a near miss of any name is refused.
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
  """Returns a value of the key's type."""
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
      f'--sweep={key}: {text!r} is not of type {kind.__name__}'
    ) from error


def _split(text: str) -> list[str]:
  """Splits at the commas outside brackets."""
  parts = re.findall(r'(?:[^,(\[]|\([^)]*\)|\[[^]]*\])+', text)
  return [part.strip() for part in parts if part.strip()]


def _plain(text: str) -> str:
  """Returns a value as part of a directory's name."""
  return re.sub(r'[^A-Za-z0-9.+-]+', '_', text).strip('_')
