"""Turns text into token shards.

    python -m launch.prepare --input='corpus/*.jsonl.zst' --tokenizer=gpt2 \\
        --out=shards
    python -m launch.prepare --describe=shards

Reads .jsonl, .jsonl.gz, .jsonl.zst and .parquet with a `text` in each record,
any other file as one document, and datasets of the Hugging Face hub and of
TFDS. Duplicates are dropped, every source gives some documents for validation,
and each document ends with the end of text. Stopped at any point, the same
command goes on where it was; the result is the same, byte for byte.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import dataclasses
import functools
import itertools
import multiprocessing
from multiprocessing import connection
import os
import pathlib
import signal
import sys
import threading
from typing import Any

from absl import flags

from steepest.launch import cli


def main() -> None:
  """The command."""
  # Light enough to be imported for --help.
  from steepest.data.preparing import options

  describe = flags.DEFINE_string(
    'describe', None, 'Check a directory of shards and show what it holds.'
  )
  workers = flags.DEFINE_integer(
    'workers', 0, 'Processes that tokenize; 0: one for each core.'
  )
  define: dict[Any, Callable[..., flags.FlagHolder]] = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
  }
  values = {}
  for field in dataclasses.fields(options.Options):
    missing = field.default is dataclasses.MISSING
    values[field.name] = define.get(field.type, flags.DEFINE_string)(
      'input' if field.name == 'inputs' else field.name,
      None if missing else field.default,
      field.metadata['help'],
    )
  cli.run(
    lambda: _run(
      describe.value, workers.value, {n: v.value for n, v in values.items()}
    ),
    __doc__,
  )


def _run(describe: str | None, workers: int, values: dict[str, Any]) -> None:
  # Read by the tokenizers library when it starts its threads.
  if workers == 1:
    os.environ['RAYON_NUM_THREADS'] = '1'
  from rich import console as rich_console

  if describe is not None:
    from steepest.data import describe as describing

    describing.describe(describe, rich_console.Console())
    return
  for name in ('inputs', 'tokenizer', 'out'):
    if not values[name]:
      raise ValueError(f'--{name.removesuffix("s")} is missing: see --help')
  if workers < 0:
    raise ValueError(f'--workers={workers}: give 0 or more')
  from steepest.data import prepare

  values['out'] = pathlib.Path(values['out']).absolute()
  if values['decontaminate_data']:
    directory = pathlib.Path(values['decontaminate_data']).absolute()
    values['decontaminate_data'] = str(directory)
  options = prepare.Options(**values)
  count = workers or prepare.processes(options.inputs)
  run = map if count == 1 else functools.partial(_parallel, workers=count)
  manifest = prepare.prepare(options, rich_console.Console(stderr=True), run)
  for note in manifest.notes:
    print(f'note: {note}', file=sys.stderr)
  print(
    f'{manifest.documents:,} documents, {manifest.tokens:,} tokens, '
    f'{manifest.duplicates:,} duplicates and {manifest.rejected:,} bad lines '
    f'left out: {options.out}'
  )
  if manifest.contaminated is not None:
    print(
      f'{sum(manifest.contaminated.values()):,} documents repeat a benchmark '
      f'({"kept" if options.decontaminate == "report" else "left out"}): see '
      f'{options.out / "contaminated.jsonl"}'
    )


def _parallel(
  function: Callable[[Any], Any], tasks: Iterable[Any], workers: int
) -> Iterator[Any]:
  """Yields the results of some tasks as they are ready.

  Tasks are drawn only when a worker is about to need one.

  Raises:
    OSError: a worker was killed.
  """
  # A fork would copy the locks of this process's threads.
  context = multiprocessing.get_context('spawn')
  pool = futures.ProcessPoolExecutor(workers, context, _begin)
  iterator = iter(tasks)
  pending: set[futures.Future[Any]] = set()
  ahead = workers + workers // 2 + 1
  try:
    while True:
      for task in itertools.islice(iterator, ahead - len(pending)):
        pending.add(pool.submit(function, task))
      if not pending:
        return
      done, pending = futures.wait(pending, None, futures.FIRST_COMPLETED)
      for future in done:
        yield future.result()
  except futures.process.BrokenProcessPool as error:
    raise OSError(
      'a worker process was killed, perhaps for want of memory: run the same '
      'command again with fewer --workers, it goes on from there'
    ) from error
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
  """Prepares a worker: one thread, gone as soon as its parent is."""
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def watch() -> None:
    connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


if __name__ == '__main__':
  main()
