"""Packs a study or run for a machine that cannot reach a package index.

    python -m launch.pack --config=experiments/quickstart.py --out=quick.tar \\
        --platform=manylinux_2_28_x86_64 --python=3.12

On that machine, unpack it and run `./run --minutes=12` in its folder: this
installs the pack, does as much as fits into 12 minutes and writes
results.tar.gz. Back here,

    python -m launch.pack --config=experiments/quickstart.py \\
        --merge=results.tar.gz

merges the results into the study's directory, which launch.report reads, and
from which launch.study or the next pack resumes.

With data.source=shards:DIR, the shards are packed. If they do not exist yet,
--input=TEXT --tokenizer=… packs text instead, and ./run prepares it.
"""

import argparse
import os
import pathlib
import sys
import sysconfig
from typing import TYPE_CHECKING

from absl import flags

from steepest.launch import cli

if TYPE_CHECKING:
  from contextlib import AbstractContextManager

  from steepest.data import buckets


def main() -> None:
  """The command."""
  config = cli.define_config()
  workdir = flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the study or run, also packed (default runs/CONFIG).',
  )
  out = flags.DEFINE_string(
    'out', None, 'FILE.tar or a directory; neither may exist.'
  )
  merge = flags.DEFINE_string(
    'merge', None, 'results.tar.gz to merge into the directory.'
  )
  asked = [
    flags.DEFINE_string(
      'platform',
      f'manylinux_2_28_{os.uname().machine}',
      'Platform of the wheels: manylinux_2_N_x86_64 or …_aarch64 (glibc 2.N).',
    ),
    flags.DEFINE_string(
      'python', sysconfig.get_python_version(), 'Python of that machine.'
    ),
    flags.DEFINE_list('extras', [], 'Extras to install, such as cuda.'),
    flags.DEFINE_string(
      'have',
      '',
      "File with that machine's `pip list`; those packages are left out.",
    ),
    flags.DEFINE_integer('limit_mb', 4000, 'Maximum size.', lower_bound=1),
    flags.DEFINE_bool('checkpoints', False, 'Include checkpoints.'),
  ]
  text = cli.define_preparation()

  def start() -> None:
    given = cli.required(config)
    from steepest.launch.packing import bundle

    home = workdir.value or cli.default_workdir(config)
    if merge.value is not None:
      with _staged(home, 'merging into this') as stage:
        merged = bundle.take_back(given, stage, pathlib.Path(merge.value))
      for name, why in merged.refused.items():
        print(f'left out {name}: {why}', file=sys.stderr)
      count = len(merged.taken)
      print(
        f'{home}: {count} run{"s" * (count != 1)}, {len(merged.kept)} were '
        f'there already, {len(merged.refused)} left out'
      )
      return
    if out.value is None:
      raise ValueError('--out is missing: give --out=FILE.tar')
    given_flags = argparse.Namespace(
      **{flag.name: flag.value for flag in asked},
      text=text() if flags.FLAGS.input else None,
    )
    path = pathlib.Path(out.value).absolute()
    with _staged(home, 'packing this') as stage:
      print(bundle.write(given, stage, path, given_flags))

  cli.run(start, __doc__, addresses=('workdir',))


def _staged(home: str, what: str) -> 'AbstractContextManager[buckets.Stage]':
  """Gives a study's or run's directory; of one in a bucket, a copy."""
  from steepest.data import buckets

  if not buckets.is_address(home):
    home = os.path.abspath(home)
  every = flags.FLAGS.checkpoints
  choice = buckets.everything if every else buckets.unfinished
  return buckets.staged(home, what, choice)


if __name__ == '__main__':
  main()
