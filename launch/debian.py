"""Gets some 100 MB of English text out of Debian packages, by source.

    apt-get update
    python -m launch.debian --out=corpus
    python -m launch.prepare --input='corpus/*.jsonl' --tokenizer=gpt2 \\
        --out=shards

Needs apt-get and dpkg-deb. Nothing is installed, and no right is needed but
to write DIR.
"""

import pathlib
import sys

from absl import flags

from steepest.launch import cli


def main() -> None:
  """The command."""
  out = flags.DEFINE_string('out', None, 'Directory to write.')
  cli.run(lambda: _fetch(out.value), __doc__)


def _fetch(out: str | None) -> None:
  if not out:
    raise ValueError('--out is missing: see --help')
  from steepest.data import debian

  held = debian.fetch(
    pathlib.Path(out).absolute(), lambda name: print(name, file=sys.stderr)
  )
  for source, counts in held.items():
    print(
      f'{source}: {counts["documents"]:,} documents, {counts["bytes"]:,} bytes'
    )
  print(out)


if __name__ == '__main__':
  main()
