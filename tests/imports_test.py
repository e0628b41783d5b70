"""Data flows one way: what each folder may import, read from the source."""

import ast
from collections.abc import Iterator
import pathlib

import pytest

_ROOT = pathlib.Path(__file__).parent.parent

# The order of the folders, and what each may import of the others:
#
#   experiments ← outside.py alone: models, optimizers, eval
#        │        models   optimizers   data
#        └──────────┴──────────┴─────────┤
#                            training    │    eval ← data's texts, files
#                                └── tuning ──┘ in worker.py alone
#                                      │
#   report ← runs on disk, eval.tasks  │
#        └──────────────────── launch ─┘ joins them all
_KEYS = ('experiments.base', 'experiments.outside')
_ALLOWED = {
  'experiments': (),
  'models': ('experiments.outside',),
  'optimizers': ('experiments.outside',),
  'data': (),
  'training': (*_KEYS, 'models', 'optimizers', 'data'),
  'eval': (
    'experiments.outside',
    *('data.tokenizers', 'data.benchmarks', 'data.files'),
  ),
  'tuning': (*_KEYS, 'models', 'optimizers', 'data', 'training'),
  'report': ('eval.tasks',),
  'launch': (
    *('experiments', 'models', 'optimizers', 'data', 'training'),
    *('eval', 'tuning', 'report'),
  ),
}
# The one file of its folder that may import more.
_MORE = {'tuning/worker.py': ('eval',)}
_FILES = sorted(
  path for folder in _ALLOWED for path in (_ROOT / folder).rglob('*.py')
)
# Not dependencies of the product, or slow to import for nothing.
_BANNED = ('tensorflow', 'torch', 'transformers', 'pickle', 'lm_eval')
# Optional: imported by functions of these files.
_OPTIONAL = {
  'eval/harness.py': ('lm_eval',),
  'launch/harness.py': ('lm_eval',),
}


def _relative(path: pathlib.Path) -> str:
  return path.relative_to(_ROOT).as_posix()


def _imports(path: pathlib.Path) -> Iterator[str]:
  """Yields the full name of everything that a file imports."""
  for node in ast.walk(ast.parse(path.read_text('utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _entry(path: pathlib.Path) -> bool:
  """Whether a file is a command."""
  return "__name__ == '__main__'" in path.read_text('utf-8')


def _within(name: str, parents: tuple[str, ...]) -> bool:
  return any(name == p or name.startswith(f'{p}.') for p in parents)


def test_all_folders_are_known():
  found = {p.parent.name for p in _ROOT.glob('*/__init__.py')}
  assert found == set(_ALLOWED)


@pytest.mark.parametrize('path', _FILES, ids=_relative)
def test_imports_only_what_its_folder_may(path):
  folder = path.relative_to(_ROOT).parts[0]
  allowed = (folder, *_ALLOWED[folder])
  if (key := _relative(path)) in _MORE:
    allowed += _MORE[key]
  for name in _imports(path):
    if name.startswith('steepest.'):
      # `from steepest import models` names a folder, for its __path__.
      assert _within(name.removeprefix('steepest.'), allowed), name


@pytest.mark.parametrize('path', _FILES, ids=_relative)
def test_folders_are_imported_through_the_namespace(path):
  for name in _imports(path):
    assert name.partition('.')[0] not in _ALLOWED, f'write steepest.{name}'


@pytest.mark.parametrize('path', _FILES, ids=_relative)
def test_imports_nothing_banned(path):
  allowed = _OPTIONAL[key] if (key := _relative(path)) in _OPTIONAL else ()
  for name in _imports(path):
    assert not _within(name, _BANNED) or _within(name, allowed), name
    # Its metric_writers import TensorFlow.
    assert not name.startswith('clu.metric_writers'), name


@pytest.mark.parametrize('file', _OPTIONAL)
def test_optional_packages_are_imported_by_functions(file):
  tree = ast.parse((_ROOT / file).read_text('utf-8'))
  for statement in tree.body:
    if isinstance(statement, ast.Import | ast.ImportFrom):
      assert not _within(ast.unparse(statement).split()[1], _OPTIONAL[file])


@pytest.mark.parametrize(
  'path',
  [p for p in (_ROOT / 'experiments').glob('*.py') if p.stem != 'outside'],
  ids=_relative,
)
def test_recipes_import_configurations_alone(path):
  for name in _imports(path):
    root = name.partition('.')[0]
    assert root in ('ml_collections', 'steepest', 'difflib', 'typing'), name


@pytest.mark.parametrize('path', _FILES, ids=_relative)
def test_commands_do_not_import_one_another(path):
  entries = {
    f'steepest.launch.{p.stem}'
    for p in (_ROOT / 'launch').glob('*.py')
    if _entry(p)
  }
  for name in _imports(path):
    assert not _within(name, tuple(entries)), name


@pytest.mark.parametrize('path', _FILES, ids=_relative)
def test_only_commands_define_flags(path):
  calls = [
    node
    for node in ast.walk(ast.parse(path.read_text('utf-8')))
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Attribute)
    and node.func.attr.startswith('DEFINE_')
  ]
  # launch/cli.py has --config for those commands that call it.
  if calls and _relative(path) != 'launch/cli.py':
    assert path.parent.name == 'launch' and _entry(path)
  tree = ast.parse(path.read_text('utf-8'))
  top = [n for n in tree.body if not isinstance(n, ast.FunctionDef)]
  for statement in top:
    for node in ast.walk(statement):
      assert node not in calls, 'importing a command defines no flags'
