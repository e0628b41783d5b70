"""Files that strangers give: whatever they hold, the error is clear.

Each valid file is changed, as bytes and, where it is JSON, as JSON. What reads
it then does its work, or raises a ValueError or OSError that names the file.
"""

import importlib.util
import io
import json
import pathlib
import shutil
import sysconfig

from hypothesis import HealthCheck, given, settings, strategies as st
import numpy as np
import pytest

# As many for the ordinary run, and for the slow one.
_FEW, _MANY = 60, 3000

_VALUES = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-(2**70), 2**70),
  st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**400]),
  st.floats(),
  st.text(max_size=8),
  st.sampled_from(['', '../../etc', 'a\nb', '\x00', '<script>', '\ud800']),
  st.just([]),
  st.just({}),
  st.lists(st.integers(0, 9), max_size=3),
)


def _places(value, path=()):
  """Yields the path of everything in a JSON value."""
  yield path
  if isinstance(value, dict):
    for key in value:
      yield from _places(value[key], (*path, key))
  elif isinstance(value, list):
    for i, held in enumerate(value):
      yield from _places(held, (*path, i))


@st.composite
def _changed_json(draw, value):
  """Draws a JSON value with up to three places replaced or removed."""
  value = json.loads(json.dumps(value))
  for _ in range(draw(st.integers(1, 3))):
    path = draw(st.sampled_from(sorted(_places(value), key=str)))
    if not path:
      value = draw(_VALUES)
      continue
    parent = value
    for key in path[:-1]:
      parent = parent[key]
    if draw(st.booleans()):
      parent[path[-1]] = draw(_VALUES)
    elif isinstance(parent, dict):
      del parent[path[-1]]
  return value


@st.composite
def _changed_bytes(draw, data):
  """Draws bytes with up to three cuts, flips and insertions."""
  data = bytearray(data)
  for _ in range(draw(st.integers(1, 3))):
    at = draw(st.integers(0, max(0, len(data) - 1)))
    kind = draw(st.sampled_from(['cut', 'flip', 'insert', 'end', 'double']))
    if kind == 'cut':
      del data[at : at + draw(st.integers(1, 40))]
    elif kind == 'flip' and data:
      data[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == 'insert':
      data[at:at] = draw(st.binary(min_size=1, max_size=12))
    elif kind == 'double':
      data[at:at] = data[at : at + 40]
    else:
      del data[at:]
  return bytes(data)


def _changed(path):
  """Returns a strategy of what a file may hold instead."""
  data = path.read_bytes()
  changed = _changed_bytes(data)
  if path.suffix == '.json':
    as_json = _changed_json(json.loads(data))
    changed |= as_json.map(lambda value: json.dumps(value).encode())
  elif path.suffix == '.jsonl':
    lines = data.splitlines()

    @st.composite
    def one_line(draw):
      i = draw(st.integers(0, len(lines) - 1))
      value = draw(_changed_json(json.loads(lines[i])))
      return b'\n'.join(
        [*lines[:i], json.dumps(value).encode(), *lines[i + 1 :]]
      )

    changed |= one_line()
  return changed


# ------------------------------------------------------------------ readers
# Each makes a directory of valid files and returns what reads it and the
# names of the files to change.


def _flat(directory):
  from steepest.data import flat

  tokens = np.arange(200, dtype=np.uint16)
  np.save(directory / 'a.npy', tokens)
  tokens.tofile(directory / 'b.bin')
  header = np.zeros(256, '<i4')
  header[:3] = 20240520, 1, len(tokens)
  (directory / 'c.bin').write_bytes(header.tobytes() + tokens.tobytes())

  def read():
    for name in ('a.npy', 'b.bin', 'c.bin'):
      flat.contents(directory / name)

  return read, ['a.npy', 'b.bin', 'c.bin']


def _shards(directory):
  from ml_collections import ConfigDict
  from rich import console

  from steepest.data import pipeline, prepare
  from steepest.experiments import base

  stdlib = pathlib.Path(sysconfig.get_paths()['stdlib'])
  corpus = directory.with_name('corpus.jsonl')
  texts = [p.read_text('utf-8') for p in sorted(stdlib.glob('json/*.py'))]
  corpus.write_text(''.join(json.dumps({'text': t}) + '\n' for t in texts))
  options = prepare.Options(
    str(corpus), 'bpe-train:300', directory, validation_fraction=0.0
  )
  directory.rmdir()
  prepare.prepare(options, console.Console(file=io.StringIO()))
  config = ConfigDict(base.get_config().data.to_dict())
  config.source = f'shards:{directory}'

  def read():
    data = pipeline.open_data(
      config, context=64, batch_size=2, steps=3, seed=0, eval_sequences=2
    )
    assert data.batch(0)['inputs'].max() < 300

  names = ['manifest.json', 'tokenizer.json']
  return read, [*names, *(p.name for p in directory.glob('train-*'))]


def _tokenizer(directory):
  from steepest.data import tokenizers

  trained = tokenizers.train_bpe(iter(['some text to learn from'] * 9), 260)
  trained.save(directory)

  def read():
    loaded = tokenizers.load(f'hf:{directory}')
    loaded.decode(loaded.encode('text'))

  return read, ['tokenizer.json', 'tokenizer_config.json']


def _hugging_face(directory):
  from safetensors import numpy as safetensors

  from steepest.experiments import base
  from steepest.models import config as model_config, huggingface

  D, V, T = 8, 11, 4
  shapes = {'wte.weight': (V, D), 'wpe.weight': (T, D)}
  for name in ('h.0.ln_1', 'h.0.ln_2', 'ln_f'):
    shapes |= {f'{name}.weight': (D,), f'{name}.bias': (D,)}
  for name, into, out in (
    ('attn.c_attn', D, 3 * D),
    ('attn.c_proj', D, D),
    ('mlp.c_fc', D, 4 * D),
    ('mlp.c_proj', 4 * D, D),
  ):
    shapes |= {f'h.0.{name}.weight': (into, out), f'h.0.{name}.bias': (out,)}
  tensors = {n: np.ones(s, np.float32) for n, s in shapes.items()}
  safetensors.save_file(tensors, directory / 'model.safetensors')
  index = {'weight_map': dict.fromkeys(tensors, 'model.safetensors')}
  name = 'model.safetensors.index.json'
  (directory / name).write_text(json.dumps(index))
  config = {
    'model_type': 'gpt2',
    'activation_function': 'gelu_new',
    'layer_norm_epsilon': 1e-5,
    'n_embd': D,
    'n_head': 2,
    'n_layer': 1,
    'n_positions': T,
    'vocab_size': V,
  }
  (directory / 'config.json').write_text(json.dumps(config))

  def read():
    resolved = base.get_config()
    found = huggingface.read_config(directory)
    # A model of these sizes would take the memory of this machine.
    if all(found[k] < 1000 for k in ('width', 'num_layers', 'vocab_size')):
      resolved.model.update(found)
      model = model_config.resolve(resolved.model, 0, resolved.dtype)
      huggingface.read_params(directory, model)

  return read, ['config.json', 'model.safetensors', name]


def _documents(directory):
  import gzip

  from steepest.data.preparing import documents, parsing

  lines = [
    {'text': 'one', 'meta': {'redpajama_set_name': 'a'}},
    {'text': 'two', 'meta': '{"source": "b"}', 'source': 'c'},
  ]
  data = ''.join(json.dumps(line) + '\n' for line in lines)
  (directory / 'a.jsonl').write_text(data)
  (directory / 'b.jsonl.gz').write_bytes(gzip.compress(data.encode()))

  def read():
    for found in documents.read(documents.find(f'{directory}/*')):
      assert isinstance(found, parsing.Document | parsing.Reject)

  return read, ['a.jsonl', 'b.jsonl.gz']


def _questions(directory):
  from steepest.eval import questions, tasks

  question = {
    'id': 'q',
    'question': 'What?',
    'choices': {'text': ['this', 'that'], 'label': ['A', 'B']},
    'answerKey': 'B',
  }
  text = ''.join(json.dumps(question) + '\n' for _ in range(3))
  (directory / 'arc_easy.jsonl').write_text(text)
  wanted = tasks.select('arc_easy').tasks

  def read():
    for asked in questions.read_questions(wanted, directory):
      for context, continuation in asked.pairs():
        assert isinstance(context + continuation, str)

  return read, ['arc_easy.jsonl']


def _pairs(directory):
  from steepest.data import tokenizers
  from steepest.eval import requests

  tokenizer = tokenizers.train_bpe(iter(['some text'] * 9), 260)
  line = {
    'task': 't',
    'doc_id': 0,
    'choice': 0,
    'context': 'a',
    'continuation': ' b',
  }
  text = ''.join(json.dumps({**line, 'doc_id': i}) + '\n' for i in range(3))
  (directory / 'pairs.jsonl').write_text(text)
  path = directory / 'pairs.jsonl'
  return lambda: requests.read_requests(path, tokenizer), ['pairs.jsonl']


def _run(directory):
  from steepest.experiments import base
  from steepest.report import tables

  config = base.get_config()
  config.optimizer.lr = 1e-3
  config = json.loads(config.to_json())
  (directory / 'config.json').write_text(json.dumps(config))
  rows = [
    {'step': i, 'tokens': i + 1, 'seconds': i / 2, 'train/loss': 3.0}
    for i in range(4)
  ]
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (directory / 'metrics.jsonl').write_text(lines)
  summary = {
    'status': 'finished',
    'steps': 4,
    'tokens': 4,
    'seconds': 1.5,
    'train_loss': 3.0,
    'eval_loss': None,
    'eval_loss_by_source': {},
    'tokens_per_second': 2.0,
    'parameters': 10,
    'parameters_without_embeddings': 5,
    'flops': 100.0,
    'curvature_passes': 0,
    'data_fingerprint': 'f',
    'compile_seconds': 0.1,
    'eval_seconds': 0.0,
    'checkpoint_seconds': 0.0,
    'mfu': None,
    'mfu_convention': 'c',
    'peak_memory_bytes': None,
  }
  (directory / 'summary.json').write_text(json.dumps(summary))
  read = lambda: tables.read([str(directory)])
  return read, ['config.json', 'metrics.jsonl', 'summary.json']


def _restart(directory):
  """What a run that is started again reads of its directory."""
  from steepest.experiments import tiny
  from steepest.training import config as validation, metrics, run as assemble

  config = validation.resolve(tiny.get_config('gpt2,adamw'))
  metrics.write_json(directory / 'config.json', validation.as_json(config))
  ended = {'status': 'finished', 'steps': config.steps, 'train_loss': 3.0}
  metrics.write_json(directory / 'summary.json', ended)
  rows = [{'step': i, 'train/loss': 3.0} for i in range(4)]
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (directory / 'metrics.jsonl').write_text(lines)

  def read():
    assemble.finished(config, directory)
    assert all('step' in row for row in metrics.read_rows(directory))

  return read, ['config.json', 'summary.json', 'metrics.jsonl']


def _checksums(directory):
  from steepest.training import checkpoint

  (directory / 'state').write_bytes(b'0123456789')
  checkpoint.write_checksums(directory, checkpoint.checksums(directory))
  return lambda: checkpoint.verify(directory), ['checksums.json', 'state']


# ----------------------------------------------------------- whole commands


def _report(directory):
  from rich.console import Console

  from steepest.report import report, runs
  from steepest.training import config

  helper = pathlib.Path(__file__).parents[1] / 'report' / 'study_runs.py'
  spec = importlib.util.spec_from_file_location('study_runs', helper)
  study_runs = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(study_runs)
  study_runs.write_study(directory, ('gpt2',), ('adamw', 'lion'))
  for rows in directory.rglob('metrics.jsonl'):
    rows.write_text(''.join(rows.read_text().splitlines(True)[::8]))
  known = runs.Known(**config.known())
  console = Console(file=io.StringIO(), width=120)
  out = directory.with_name('out')
  trial, final = 'trials/gpt2-adamw/lr=0.004', 'finals/gpt2-adamw/seed=0'
  names = ['config', f'{trial}/config', f'{trial}/summary']
  names += [
    f'{final}/{n}' for n in ('config', 'summary', 'env', 'eval/results')
  ]
  names = [f'{name}.json' for name in names]
  names += [f'{final}/{n}.jsonl' for n in ('metrics', 'eval/predictions')]
  return lambda: report.run([directory], out, [], known, console), names


def _compare(directory):
  """As a report, without its page."""
  from steepest.report import runs, tables, verdicts
  from steepest.training import config

  _, names = _report(directory)
  known = runs.Known(**config.known())
  return lambda: verdicts.compare(tables.read([directory], known)), names


def _evaluate(directory):
  from safetensors import numpy as safetensors

  from steepest.data import tokenizers
  from steepest.launch import evaluate

  _, names = _hugging_face(directory)
  tokenizers.train_bpe(iter(['What? this that'] * 9), 260).save(directory)
  config = json.loads((directory / 'config.json').read_text())
  V, T, D = 260, 256, config['n_embd']
  config |= {'vocab_size': V, 'n_positions': T}
  (directory / 'config.json').write_text(json.dumps(config))
  tensors = safetensors.load_file(directory / 'model.safetensors')
  tensors['wte.weight'] = np.ones((V, D), np.float32)
  tensors['wpe.weight'] = np.ones((T, D), np.float32)
  safetensors.save_file(tensors, directory / 'model.safetensors')
  names += [*_questions(directory)[1], *_pairs(directory)[1]]
  names += ['tokenizer.json', 'tokenizer_config.json']
  out = directory.with_name('scores')

  def read():
    # Scores of another model are not written over.
    shutil.rmtree(out, ignore_errors=True)
    evaluate._evaluate(
      model=f'hf:{directory}',
      tasks='arc_easy',
      num_fewshot=None,
      data=str(directory),
      limit=0,
      requests=str(directory / 'pairs.jsonl'),
      out=str(out),
    )

  return read, names


def _again(directory):
  """A run that has ended, started again and, longer, gone on with."""
  from steepest.experiments import tiny
  from steepest.training import run

  golden = pathlib.Path(__file__).parents[1] / 'golden'
  config = tiny.get_config('gpt2,adamw')
  config.update_from_flattened_dict(
    {
      'data.source': f'flat:{golden / "tokens.npy"}',
      'model.num_layers': 1,
      'model.width': 32,
      'model.context': 16,
      'model.vocab_size': 128,
      'schedule.kind': 'constant',
      'steps': 2,
      'checkpoint_every': 2,
    }
  )
  run.train(config, directory)
  copy = directory.with_name(f'{directory.name}-copy')

  def read():
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    run.train(config, copy)

  names = ['config.json', 'summary.json', 'env.json', 'metrics.jsonl']
  return read, [
    *names,
    'checkpoints/2/books/metadata',
    'latest_checkpoint.json',
  ]


def _watch(directory):
  from rich.console import Console

  from steepest.tuning import status

  _, names = _run(directory)
  row = '{"step": 3, "data/wait_seconds": 0.1, "tokens_per_second": 9.5, '
  row += '"tokens": 4, "seconds": 1.5, "mfu": 0.4, "train/loss": 3.0}\n'
  (directory / 'metrics.jsonl').write_text(row + row.replace('3', '5'))
  event = {'step': 3, 'kind': 'metrics', 'text': 'x', 'time': 2e9}
  (directory / 'events.jsonl').write_text(json.dumps(event) + '\n')
  console = Console(file=io.StringIO(), width=160)

  def read():
    found = [status.read(run, 2e9) for run in status.find([str(directory)])]
    console.print(status.table(found, None))
    for one in found:
      if one.state == 'unreadable':
        raise ValueError(f'{one.path}: {one.alarms}')

  return read, [*names, 'events.jsonl']


_READERS = {
  fn.__name__.strip('_'): fn
  for fn in (
    _flat,
    _shards,
    _tokenizer,
    _hugging_face,
    _documents,
    _questions,
    _pairs,
    _run,
    _restart,
    _checksums,
    _report,
    _compare,
    _watch,
    _evaluate,
    _again,
  )
}
# Whole commands take a second.
_COMMANDS = {
  'report': (6, 100),
  'compare': (10, 500),
  'evaluate': (10, 500),
  'again': (10, 1000),
}


def _counts(reader):
  return _COMMANDS[reader] if reader in _COMMANDS else (_FEW, _MANY)


def _fuzz(make, directory, examples):
  directory.mkdir()
  read, names = make(directory)
  read()
  strategy = st.sampled_from(names).flatmap(
    lambda name: st.tuples(st.just(name), _changed(directory / name))
  )
  kept = {name: (directory / name).read_bytes() for name in names}
  refused = 0

  @settings(
    max_examples=examples,
    deadline=None,
    database=None,
    # The ordinary run always tries the same, the slow one ever others.
    derandomize=examples <= _FEW,
    suppress_health_check=list(HealthCheck),
  )
  @given(strategy)
  def check(change):
    nonlocal refused
    name, data = change
    (directory / name).write_bytes(data)
    try:
      read()
    except (ValueError, OSError) as error:
      refused += 1
      said = str(error)
      assert str(directory) in said or name in said, (name, said)
      assert len(said) < 1000, said
    finally:
      (directory / name).write_bytes(kept[name])

  check()
  assert refused > examples // 10
  print(f'{refused} of {examples} refused')
  shutil.rmtree(directory)


@pytest.mark.parametrize('reader', _READERS)
def test_malformed_files_get_a_clear_error(tmp_path, reader):
  _fuzz(_READERS[reader], tmp_path / 'given', _counts(reader)[0])


@pytest.mark.slow
@pytest.mark.parametrize('reader', _READERS)
def test_thousands_of_malformed_files_get_a_clear_error(tmp_path, reader):
  _fuzz(_READERS[reader], tmp_path / 'given', _counts(reader)[1])
