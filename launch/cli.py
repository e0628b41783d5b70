"""How every command starts and ends: flags, help, one-line errors."""

import argparse
from collections.abc import Callable, Collection, Iterable, Iterator
import dataclasses
import difflib
import logging as standard_logging
import os
import pathlib
import re
import sys
import textwrap
import traceback
from typing import TYPE_CHECKING, Any
import unicodedata

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from steepest.data import terminal
from steepest.training import chips, processes

if TYPE_CHECKING:
  from steepest.data.preparing.options import Options

# Most characters of an error line; a value that it quotes may be longer.
_LONGEST = 800
# Each is a file in launch/submitters/.
PLACES = ('local', 'slurm', 'sky', 'xmanager', 'files')
_HELP = ('--help', '-help', '-h', '--helpshort', '--helpfull')


def run(
  main: Callable[[], None],
  doc: str | None,
  words: list[str] | None = None,
  addresses: Collection[str] = (),
) -> None:
  """Parses the flags, calls `main` and exits.

  `words` receives the positional arguments; with None they are refused.
  `addresses` names the flags that accept bucket addresses.
  An error prints one line to stderr and exits with status 1; an interruption
  exits with 130. STEEPEST_TRACEBACK=1 adds the traceback. `--help` prints `doc`
  and the flags and exits with 0.
  """
  # Orbax logs pages for errors that take one line here.
  logging.set_verbosity(logging.FATAL)
  standard_logging.getLogger('asyncio').setLevel(standard_logging.CRITICAL)
  sys.unraisablehook = _show_unraisable
  processes.keep_memory()
  if any(arg in _HELP for arg in sys.argv[1:]):
    print((doc or '').strip(), end='\n\n')
    _print_flags()
    sys.exit(0)
  try:
    _check_characters(sys.argv[1:])
    sys.argv[1:] = [_find_config(arg) for arg in sys.argv[1:]]
    try:
      rest = flags.FLAGS(sys.argv)
    except (AttributeError, KeyError):
      _check_keys(sys.argv)
      raise
    if words is not None:
      words += rest[1:]
    elif len(rest) > 1:
      raise ValueError(
        f'unexpected argument {rest[1]!r}: flags are --name=VALUE'
      )
    _check_addresses(addresses)
    main()
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    sys.exit(130)
  except Exception as error:  # The only place that prints errors.
    if os.environ.get('STEEPEST_TRACEBACK'):
      traceback.print_exc()
    print(f'error: {_one_line(error)}', file=sys.stderr)
    _leave_others()
    sys.exit(1)


def _show_unraisable(unraisable: 'sys.UnraisableHookArgs') -> None:
  """Prints errors that no caller can catch, but not a full disk's late ones."""
  # TensorStore reports each array's failure to an event loop that Orbax closed
  # at the first one.
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def _leave_others() -> None:
  """Exits at once if JAX spans processes: at exit it would wait for them."""
  jax = sys.modules.get('jax')
  if jax is not None and jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def write(out: flags.FlagHolder, main: Callable[[], None]) -> None:
  """Calls `main`, which writes to --out, while it locks that directory.

  For a bucket, --out becomes the local copy.
  """
  from steepest.data import buckets, locks

  with (
    buckets.staged(out.value, 'writing there') as stage,
    locks.hold(stage.directory, 'writing there'),
  ):
    if buckets.is_address(out.value):
      flags.FLAGS[out.name].value = str(stage.directory)
    main()


def define_config() -> flags.FlagHolder:
  """Defines --config=FILE.py[:VARIANT] and --config.KEY=VALUE."""
  return config_flags.DEFINE_config_file(
    'config',
    None,
    'Recipe as FILE.py or FILE.py:VARIANT; --config.KEY=VALUE '
    'overrides any key of experiments/base.py.',
    lock_config=False,
    # Keys of a single optimizer; training/config.py refuses unknown ones.
    accept_new_attributes=True,
  )


def define_place() -> Callable[[], argparse.Namespace]:
  """Defines the flags of submitted runs; returns a function that reads them."""
  whole, many = flags.DEFINE_integer, flags.DEFINE_multi_string
  defined = [
    flags.DEFINE_string(
      'chip', '', f"{', '.join(chips.CHIPS)}; '': no accelerator."
    ),
    whole('devices', 1, 'Accelerators of a run.', lower_bound=1),
    whole(
      'nodes',
      1,
      'Machines of a study, with all their accelerators (slurm). For a run, '
      'machines to divide --processes over; with --chip, --devices decides.',
      lower_bound=1,
    ),
    whole(
      'processes',
      0,
      'Processes of a run; 0: one per GPU or TPU machine, otherwise one. Of a '
      'study: maximum number of concurrent runs.',
      lower_bound=0,
    ),
    whole('restarts', 3, 'Maximum restarts without progress.', lower_bound=0),
    flags.DEFINE_float(
      'hours',
      None,
      'Time limit of a run (default: from the plan).',
      lower_bound=0.1,
    ),
    flags.DEFINE_float(
      'minutes',
      None,
      'Time limit of a study: it does as much as fits, saves and stops.',
      lower_bound=0.0,
    ),
    many('option', [], 'KEY=VALUE, an option of --to (docs/launching.md).'),
    many('env', [], 'NAME=VALUE, set for the runs; no secrets.'),
    flags.DEFINE_bool('check', True, 'Refuse runs that will not fit.'),
    flags.DEFINE_bool('dry_run', False, 'Only print what would be submitted.'),
  ]
  return lambda: argparse.Namespace(**{f.name: f.value for f in defined})


def define_preparation() -> Callable[[], 'Options']:
  """Defines the flags of text preparation, except those defined already.

  Returns:
    A function that builds the options from the flags. It raises a ValueError
    that names a missing flag.
  """
  # Light enough to be imported for --help.
  from steepest.data.preparing import options

  define: dict[Any, Callable[..., flags.FlagHolder]] = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
  }
  names = {f.name: f.name for f in dataclasses.fields(options.Options)}
  names['inputs'] = 'input'
  for field in dataclasses.fields(options.Options):
    missing = field.default is dataclasses.MISSING
    if names[field.name] not in flags.FLAGS:
      define.get(field.type, flags.DEFINE_string)(
        names[field.name],
        None if missing else field.default,
        field.metadata['help'],
      )

  def make() -> options.Options:
    values: dict[str, Any] = {
      key: flags.FLAGS[name].value for key, name in names.items()
    }
    for key in ('inputs', 'tokenizer', 'out'):
      if not values[key]:
        raise ValueError(f'--{names[key]} is missing: see --help')
    values['out'] = pathlib.Path(values['out']).resolve()
    if values['decontaminate_data']:
      directory = pathlib.Path(values['decontaminate_data']).absolute()
      values['decontaminate_data'] = str(directory)
    return options.Options(**values)

  return make


def define_required(name: str, meaning: str, form: str) -> flags.FlagHolder:
  """Defines the required flag --NAME; the error shows --NAME=`form`."""
  holder = flags.DEFINE_string(name, '', meaning)
  flags.register_validator(
    name, bool, f'--{name} is missing: give --{name}={form}'
  )
  return holder


def define_price() -> flags.FlagHolder:
  """Defines --price."""
  return flags.DEFINE_float(
    'price', 0.0, 'Dollars per chip-hour, for --plan.', lower_bound=0
  )


def overrides(holder: flags.FlagHolder) -> dict[str, object]:
  """The keys that the command line set, with their values."""
  return dict(config_flags.get_override_values(flags.FLAGS[holder.name]))


def required(holder: flags.FlagHolder) -> ConfigDict:
  """The configuration; raises ValueError when --config is missing."""
  if holder.value is None:
    raise ValueError('--config is missing: give --config=experiments/tiny.py')
  return holder.value


def default_workdir(holder: flags.FlagHolder) -> str:
  """Returns runs/CONFIG-VARIANT."""
  path = config_flags.get_config_filename(flags.FLAGS[holder.name])
  name, _, variant = path.partition(':')
  words = [pathlib.Path(name).stem, *filter(None, re.split(r'\W+', variant))]
  return f'runs/{"-".join(words)}'


def _find_config(arg: str) -> str:
  """Resolves --config=experiments/F.py from any directory."""
  match = re.fullmatch(r'(--?config=)([^:]+\.py)(:.*)?', arg)
  if not match or pathlib.Path(match[2]).exists():
    return arg
  if pathlib.Path(match[2]).parent != pathlib.Path('experiments'):
    raise FileNotFoundError(f'no recipe {match[2]}')
  from steepest.experiments import base

  shipped = pathlib.Path(base.__file__).parent / pathlib.Path(match[2]).name
  if not shipped.exists():
    known = sorted(p.name for p in shipped.parent.glob('[a-z]*.py'))
    near = difflib.get_close_matches(shipped.name, known, 1)
    hint = f'did you mean experiments/{near[0]}? ' if near else ''
    raise FileNotFoundError(
      f'no recipe {match[2]}: {hint}there are {", ".join(known)}'
    )
  return f'{match[1]}{shipped}{match[3] or ""}'


def _check_characters(arguments: Iterable[str]) -> None:
  """Raises a ValueError for control characters: paths are printed."""
  for arg in arguments:
    if any(unicodedata.category(c) == 'Cc' and c not in '\n\t' for c in arg):
      raise ValueError(f'{arg!r}: contains a control character')


def _check_addresses(allowed: Collection[str]) -> None:
  """Raises a ValueError for an address in a flag that takes only paths."""
  for flag in _own_flags():
    values = flag.value if isinstance(flag.value, list) else [flag.value]
    for value in values if flag.name not in allowed else ():
      if isinstance(value, str) and re.match(r'\w+://', value):
        raise ValueError(
          f'--{flag.name}={value}: takes only local paths: mount the bucket '
          'or copy it here'
        )


def _own_flags() -> Iterator[flags.Flag]:
  """Yields the flags that this project, not a library, defines."""
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    if not module.startswith(('absl', 'grain', 'orbax', 'jax', 'tensorflow')):
      yield from defined


def _print_flags() -> None:
  print('Flags:')
  for flag in _own_flags():
    default = f' (default {flag.default})' if flag.default else ''
    # Abseil's note, whose line breaks vary.
    text = re.sub(r'\.?;\s+repeat this option.*', ' (repeatable)', flag.help)
    print(
      textwrap.fill(
        f'--{flag.name}: {text}{default}',
        initial_indent='  ',
        subsequent_indent='      ',
      )
    )


def _check_keys(argv: list[str]) -> None:
  """Raises a ValueError that names the first unknown key of --config.KEY=."""
  from steepest.experiments import base

  known = base.flatten(base.get_study_config())
  for arg in argv[1:]:
    match = re.match(r'--?(?:no)?config\.([^=]+)', arg)
    if not match or match[1] in known:
      continue
    near = difflib.get_close_matches(match[1], known, 1, cutoff=0.3)
    # The right name in the wrong group is the commonest mistake.
    leaf = match[1].rpartition('.')[2]
    near = [k for k in known if k.rpartition('.')[2] == leaf] or near
    hint = f'; did you mean {near[0]}?' if near else ''
    raise ValueError(f'unknown key {match[1]} in {arg}{hint}')


def _one_line(error: Exception) -> str:
  said = str(error)
  if isinstance(error, OSError) and error.filename and error.strerror:
    # Not '[Errno 13] Permission denied: …'.
    said = f'{error.filename}: {error.strerror.lower()}'
  text = terminal.escape(' '.join(said.split()))
  # Abseil's prefix to the message of define_required.
  text = re.sub(r'flag --\w+=: ', '', text)
  # config_flags puts the whole traceback of a recipe into its message.
  if 'Error whilst parsing config file' in text:
    text = re.sub(r'^.*(?<!\w)(?:\w+Error): ', '', text)
  if len(text) > _LONGEST:
    text = f'{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}'
  if isinstance(error, (ValueError, OSError, flags.Error)) and text:
    return text
  return f'{type(error).__name__}: {text}'
