"""Merges runs done elsewhere into a study's or a run's directory.

Takes only what would be done here: a run with the very same configuration that
has ended, or got further than the one here. The archive may be anybody's, so no
name in it is trusted.
"""

from collections.abc import Callable, Iterator
import contextlib
import gzip
import json
import math
import os
import pathlib
import shutil
import tarfile
import tempfile
from typing import Any, NamedTuple
import zlib

from ml_collections import ConfigDict

from steepest.training import metrics
from steepest.tuning import cells, timing

_OLD = '.replaced'
_CHUNK = 1 << 20


class Merged(NamedTuple):
  """The fate of an archive's runs, by directory.

  Attributes:
    taken: now here.
    kept: were already here, as far or further.
    refused: why others were left out.
  """

  taken: list[str]
  kept: list[str]
  refused: dict[str, str]


@contextlib.contextmanager
def unpacked(
  archive: pathlib.Path, beside: pathlib.Path
) -> Iterator[pathlib.Path]:
  """Unpacks an archive, without its top folder, into a temporary directory.

  Args:
    archive: .tar.gz.
    beside: parent of the temporary directory.

  Raises:
    ValueError: it is damaged, or holds anything but plain files inside it.
  """
  with tempfile.TemporaryDirectory(dir=beside, prefix='.merge-') as directory:
    found = pathlib.Path(directory) / 'found'
    found.mkdir()
    try:
      with gzip.open(archive) as file:
        with tarfile.open(fileobj=file, mode='r:') as tar:
          for member in tar:
            _write(tar, member, found)
        # The checksum is at the end, which reading members does not reach.
        while file.read(_CHUNK):
          pass
    except ValueError as error:
      raise ValueError(f'{archive}: {error}') from error
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
      raise ValueError(f'{archive} is damaged: {error}') from error
    yield found


def _write(
  tar: tarfile.TarFile, member: tarfile.TarInfo, directory: pathlib.Path
) -> None:
  """Writes a member under `directory`, refusing names that point outside."""
  if member.isdir():
    return
  path = pathlib.PurePosixPath(member.name)
  inside = len(path.parts) > 1 and '..' not in path.parts
  target = directory.joinpath(*path.parts[1:])
  if not (member.isreg() and inside) or path.is_absolute() or target.exists():
    raise ValueError(
      f'{member.name!r} is not a plain file in the one folder, or a duplicate: '
      'nothing is merged'
    )
  target.parent.mkdir(parents=True, exist_ok=True)
  held = tar.extractfile(member)
  assert held is not None  # A plain file has one.
  with target.open('xb') as file:
    shutil.copyfileobj(held, file)


def into(
  workdir: pathlib.Path,
  waiting: Callable[[], list[tuple[ConfigDict, pathlib.Path]]],
  found: pathlib.Path,
  rename: Callable[[dict[str, Any]], dict[str, Any]],
) -> Merged:
  """Takes the runs that would be done next here, until there are none.

  Args:
    workdir: of the study or run, which nothing else uses.
    waiting: returns configurations and directories of the runs that may begin
      now.
    found: directory of its copy from elsewhere; taken runs are moved out of it.
    rename: config.json of a run there → the same with local files.
  """
  names = {p.parent.relative_to(found) for p in found.rglob('config.json')}
  merged, looked = Merged([], [], {}), set[pathlib.Path]()
  # Searches continue from the runs taken, so ask again for the next ones.
  while new := [(run, at) for run, at in waiting() if at not in looked]:
    for run, at in new:
      looked.add(at)
      name = at.relative_to(workdir)
      if name in names:
        _take(merged, name.as_posix(), run, at, found / name, rename)
  known = {'.', *merged.taken, *merged.kept, *merged.refused}
  for other in sorted({path.as_posix() for path in names} - known):
    if cells.has_ended(workdir / other):
      merged.kept.append(other)
    else:
      merged.refused[other] = 'this study does not plan it, or not yet'
  if not (workdir / timing.FILE).exists():
    with contextlib.suppress(FileNotFoundError):
      os.replace(found / timing.FILE, workdir / timing.FILE)
  return merged


def _take(
  merged: Merged,
  name: str,
  config: ConfigDict,
  here: pathlib.Path,
  there: pathlib.Path,
  rename: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
  """Moves a run into place if it is the same run and further along."""
  path = there / 'config.json'
  try:
    metrics.write_json(path, rename(json.loads(path.read_text('utf-8'))))
    further = _done(config, there) > _done(config, here)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    said = ' '.join(str(error).split()).replace(str(there), 'the run there')
    merged.refused[name] = said.removesuffix(': use another --workdir')
    return
  if further:
    here.parent.mkdir(parents=True, exist_ok=True)
    if here.exists():
      os.rename(here, there.with_name(there.name + _OLD))
    os.rename(there, here)
  (merged.taken if further else merged.kept).append(name)


def _done(config: ConfigDict, directory: pathlib.Path) -> float:
  """Returns the steps of a run's newest checkpoint, infinite if it has ended.

  Raises:
    ValueError: it is another run, or its files are damaged.
  """
  loss = cells.ended(config, directory)
  if loss is None:
    steps = (directory / 'checkpoints').glob('[0-9]*')
    return max((int(p.name) for p in steps if p.name.isdigit()), default=0)
  summary, rows = cells.outcome(directory), metrics.read_rows(directory)
  last = rows[-1]['step'] + 1 if rows else 0
  finished = summary['status'] == 'finished'
  if math.isnan(loss) or (finished and last != summary['steps']):
    raise ValueError(
      f'its summary has {summary["steps"]} steps and its rows {last}'
    )
  return math.inf
