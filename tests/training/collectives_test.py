"""What the devices of a mesh send each other, read from the compiled step.

On the simulated devices of a CPU: there, what is reduced and scattered
elsewhere is reduced everywhere.
"""

import collections
import math
import re
from typing import NamedTuple

import jax
import pytest

from steepest.optimizers import costs
from steepest.training import step as step_lib

_BATCH, _LENGTH, _WIDTH, _VOCAB = 16, 16, 32, 160
_KINDS = (
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-permute',
  'reduce-scatter',
)


class Collective(NamedTuple):
  """One of them: results, the operation that it serves, and where it is."""

  kind: str
  shapes: list[tuple[int, ...]]
  source: str
  in_loop: bool

  @property
  def elements(self) -> int:
    return sum(math.prod(shape) for shape in self.shapes)

  @property
  def of_model(self) -> bool:
    """Whether it serves the model's passes.

    JAX 0.11 calls what gathers a parameter for its first use by its name.
    """
    return 'Model' in self.source or self.source.startswith('state.params')


def _computations(text: str) -> dict[str, list[str]]:
  found: dict[str, list[str]] = {}
  for line in text.splitlines():
    if match := re.match(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$', line):
      lines = found.setdefault(match[1], [])
    elif line.startswith('  '):
      lines.append(line)
  return found


def _in_loops(computations: dict[str, list[str]]) -> set[str]:
  """Returns the computations that loops run."""
  called = lambda line: (
    set(re.findall(r'%([\w.\-]+)', line)) & set(computations)
  )
  todo = {
    name
    for lines in computations.values()
    for line in lines
    if ' while(' in line
    for name in called(line)
  }
  found: set[str] = set()
  while todo:
    name = todo.pop()
    found.add(name)
    todo |= {n for line in computations[name] for n in called(line)} - found
  return found


def _collectives(text: str) -> list[Collective]:
  computations = _computations(text)
  loops = _in_loops(computations)
  found = []
  kinds = '|'.join(_KINDS)
  for name, lines in computations.items():
    for line in lines:
      match = re.search(rf'= (.*?) ({kinds})(?:-start)?\(', line)
      if match:
        shapes = [
          tuple(int(n) for n in dims.split(',') if n)
          for dims in re.findall(r'\w\d+\[([\d,]*)\]', match[1])
        ]
        source = re.search(r'op_name="([^"]*)"', line)
        found.append(
          Collective(
            match[2], shapes, source[1] if source else '', name in loops
          )
        )
  return found


@pytest.fixture(scope='module')
def compiled(configure, make_trainer):
  """Returns (setup, collectives of its step)."""

  def fn(name, optimizer, **keys):
    config = configure(
      name,
      optimizer,
      **{'model__vocab_size': _VOCAB, 'model__num_layers': 2, **keys},
    )
    trainer = make_trainer(config)
    step = step_lib.compile_step(trainer.setup, trainer.hypers)
    return trainer.setup, _collectives(step.as_text())

  return fn


def _of_kind(found, kind):
  return [c for c in found if c.kind == kind]


def _parameters(setup):
  return sum(math.prod(s.shape) for s in jax.tree.leaves(setup.shapes[1]))


def _matrices(found, layer, pass_):
  """Returns how often each weight of a layer is gathered in a pass."""
  names = [
    c.source.split(f'block_{layer}')[-1]
    for c in found
    if f'block_{layer}' in c.source
    and ('transpose' in c.source) == (pass_ == 'backward')
    and all(len(shape) == 2 for shape in c.shapes)
  ]
  pattern = r"/(\w+)/(?:dot_general|transpose)|'(\w+)\\'\]\[\\'kernel"
  found = re.findall(pattern, ' '.join(names))
  return collections.Counter(name or parameter for name, parameter in found)


def test_copies_reduce_their_gradients_and_nothing_else(compiled):
  setup, found = compiled('llama', 'adamw', mesh__data=8)
  assert {c.kind for c in found} == {'all-reduce'}
  total = sum(c.elements for c in found)
  # Each gradient once, and the loss.
  assert 0 <= total - _parameters(setup) <= 8


@pytest.mark.parametrize(
  'name, optimizer',
  [
    ('gpt2', 'adamw'),
    pytest.param('llama', 'lion', marks=pytest.mark.slow),
    pytest.param('llama', 'sophia', marks=pytest.mark.slow),
  ],
)
def test_split_parameters_are_gathered_once_a_pass(compiled, name, optimizer):
  setup, found = compiled(name, optimizer, mesh__fsdp=8)
  gathers = _of_kind(found, 'all-gather')
  passes = [c for c in gathers if 'branch' not in c.source]
  weights = ['query', 'key', 'value', 'output', 'mlp_up', 'mlp_down']
  weights += ['mlp_gate'] if name == 'llama' else []
  for layer in (0, 1):
    for pass_ in ('forward', 'backward'):
      assert _matrices(passes, layer, pass_) == dict.fromkeys(weights, 1)
  # Only the model's passes gather: no update, no state of the optimizer.
  assert all(c.of_model for c in gathers)
  # Weights and biases, never a scalar nor what depends on the batch.
  sizes = {math.prod(s.shape) for s in jax.tree.leaves(setup.shapes.params)}
  assert all(math.prod(s) in sizes for c in gathers for s in c.shapes)
  assert min(c.elements for c in gathers) >= _WIDTH
  kinds = {'all-gather', 'all-reduce', 'reduce-scatter'}
  assert {c.kind for c in found} == kinds
  # What looks tokens up scatters its gradient itself, once each.
  scattered = [s for c in _of_kind(found, 'reduce-scatter') for s in c.shapes]
  assert scattered == [(_VOCAB, _WIDTH // 8)] * (1 + (optimizer == 'sophia'))


def test_a_loop_over_layers_gathers_one_at_a_time(compiled):
  setup, found = compiled(
    'llama', 'adamw', mesh__fsdp=8, model__num_layers=3, model__scan_layers=True
  )
  stacked = jax.tree.leaves(setup.shapes.params['block_all'])
  weights = [math.prod(s.shape[1:]) for s in stacked if len(s.shape) > 2]
  gathers = [c for c in _of_kind(found, 'all-gather') if c.in_loop]
  # For the forward pass, and for the backward pass.
  assert sorted(c.elements for c in gathers) == sorted(2 * weights)


@pytest.mark.parametrize(
  'name, optimizer',
  [
    ('gpt2', 'sophia'),
    pytest.param('llama', 'adamw', marks=pytest.mark.slow),
  ],
)
def test_logits_stay_split_over_the_vocabulary(compiled, name, optimizer):
  _, found = compiled(name, optimizer, mesh__tensor=4, model__num_layers=1)
  assert {c.kind for c in found} == {'all-reduce'}
  rows = _BATCH * _LENGTH
  for c in found:
    for shape in c.shapes:
      # The stream, statistics of tokens, gradients of small vectors.
      assert math.prod(shape) <= rows * _WIDTH, c
      assert _VOCAB not in shape and _VOCAB // 4 not in shape, c
  # Of a token's loss: the highest logit, the sum, and the one that is picked.
  statistics = [
    s
    for c in found
    if 'branch' not in c.source
    for s in c.shapes
    if math.prod(s) == rows
  ]
  assert len(statistics) == 3


def test_copies_reduce_once_whatever_the_micro_batches(compiled):
  setup, found = compiled('gpt2', 'adamw', mesh__data=4, microbatches=2)
  assert not [c for c in found if c.in_loop]
  assert {c.kind for c in found} == {'all-reduce'}
  assert 0 <= sum(c.elements for c in found) - _parameters(setup) <= 8


@pytest.mark.parametrize(
  'optimizer', ['adamw', pytest.param('sophia', marks=pytest.mark.slow)]
)
def test_micro_batches_gather_no_parameter_again(compiled, optimizer):
  setup, found = compiled(
    'llama',
    optimizer,
    mesh__data=2,
    mesh__fsdp=2,
    mesh__tensor=2,
    microbatches=2,
    model__num_layers=1,
  )
  loop = [c for c in found if c.in_loop]
  assert {c.kind for c in loop} == {'all-reduce', 'reduce-scatter'}
  assert all('Model' in c.source or 'jvp' in c.source for c in loop)
  # No logits: of what has a batch, at most the stream.
  for c in found:
    for shape in c.shapes:
      assert shape[-1:] not in ((_VOCAB,), (_VOCAB // 2,)) or (
        shape[-2] == _WIDTH
      ), c


@pytest.mark.parametrize(
  'name', ['gpt2', pytest.param('llama', marks=pytest.mark.slow)]
)
def test_parts_of_a_sequence_exchange_keys_and_values(compiled, name):
  _, found = compiled(name, 'adamw', mesh__sequence=4)
  gathers = _of_kind(found, 'all-gather')
  shapes = [s for c in gathers for s in c.shapes]
  if name == 'gpt2':
    # The gradient of the table of positions, of which each part has its own.
    shapes.remove((_LENGTH, _WIDTH))
  assert shapes == [(_BATCH, _LENGTH, 4, _WIDTH // 4)] * 4
  assert {c.kind for c in found} == {'all-gather', 'all-reduce'}


@pytest.mark.parametrize(
  'mesh, subset',
  [
    ({'mesh__data': 2, 'mesh__fsdp': 2, 'microbatches': 2}, 2),
    pytest.param(
      {'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2},
      2,
      marks=pytest.mark.slow,
    ),
    pytest.param({'mesh__data': 8}, 2, marks=pytest.mark.slow),
    pytest.param(
      {'mesh__fsdp': 4, 'mesh__sequence': 2}, 4, marks=pytest.mark.slow
    ),
    pytest.param(
      {'mesh__data': 2, 'mesh__fsdp': 2, 'microbatches': 4},
      2,
      marks=pytest.mark.slow,
    ),
  ],
)
@pytest.mark.parametrize(
  'estimator', ['gnb', pytest.param('hutchinson', marks=pytest.mark.slow)]
)
def test_a_subset_moves_nothing(compiled, mesh, subset, estimator):
  """Curvature of some sequences sends no more than that of all."""
  sent = []
  for n in (1, subset):
    _, found = compiled(
      'llama',
      'sophia',
      model__num_layers=1,
      optimizer__hessian_estimator=estimator,
      optimizer__hessian_subset=n,
      **mesh,
    )
    sent.append({k: [c.elements for c in _of_kind(found, k)] for k in _KINDS})
  whole, part = sent
  for kind in _KINDS:
    assert len(part[kind]) <= len(whole[kind]), kind
    assert sum(part[kind]) <= sum(whole[kind]), kind


@pytest.mark.parametrize(
  'mesh, squares, oblongs',
  [
    # Of twelve of query, key and value it gets two (four are repeated to fill
    # up the devices), and one each of four outputs, eight that widen, four that
    # narrow.
    ({'mesh__fsdp': 8}, 3, 2),
    # The four devices of a copy share them; copies do not send each other any.
    ({'mesh__data': 2, 'mesh__fsdp': 4}, 4, 3),
  ],
)
@pytest.mark.parametrize('optimizer', ['muon', 'soap'])
def test_whole_matrices_are_dealt_out(
  compiled, optimizer, mesh, squares, oblongs
):
  """Each device gets whole ones of four layers, and sends back their results.

  Muon sends momenta and updates; SOAP sends the gradient, two moments and two
  bases, and gets the update, one moment and two products.
  """
  setup, found = compiled('llama', optimizer, **mesh, model__num_layers=4)
  of_update = [c for c in found if not c.of_model and 'branch' not in c.source]
  sent = sum(c.elements for c in _of_kind(of_update, 'all-to-all'))
  per_matrix = {
    'muon': lambda m, n: 2 * m * n,
    'soap': lambda m, n: 5 * m * n + 2 * m * m + 2 * n * n,
  }[optimizer]
  wide = per_matrix(_WIDTH, setup.model.mlp_dim)
  assert sent == squares * per_matrix(_WIDTH, _WIDTH) + oblongs * wide
  # The plan counts operands and results, of four bytes each.
  shapes = setup.shapes
  planned = costs.exchanged_bytes(setup.chain, shapes.params, shapes.opt_state)
  assert planned == 2 * 4 * sent
  # Beside them, norms.
  others = [c for c in of_update if c.kind != 'all-to-all']
  assert {c.kind for c in others} == {'all-reduce'}
  assert all(math.prod(s) <= _WIDTH for c in others for s in c.shapes)
