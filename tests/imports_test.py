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
# Imports nothing; all may read files through it.
_READING = 'data.reading'
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
_FILES = {
  path.relative_to(_ROOT).as_posix(): ast.parse(path.read_text('utf-8'))
  for folder in _ALLOWED
  for path in sorted((_ROOT / folder).rglob('*.py'))
}
# Not dependencies of the product, or slow to import for nothing.
_BANNED = ('tensorflow', 'torch', 'transformers', 'pickle', 'lm_eval')
# Optional: imported by functions of these files.
_OPTIONAL = {
  'eval/harness.py': ('lm_eval',),
  'launch/harness.py': ('lm_eval',),
}


def _imports() -> Iterator[tuple[str, str]]:
  """Yields each file with the full name of everything that it imports."""
  for file, tree in _FILES.items():
    for node in ast.walk(tree):
      if isinstance(node, ast.Import):
        yield from ((file, alias.name) for alias in node.names)
      elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f'{file}: relative import'
        yield from ((file, f'{node.module}.{a.name}') for a in node.names)


def _entry(file: str) -> bool:
  """Whether a file is a command."""
  return "__name__ == '__main__'" in (_ROOT / file).read_text('utf-8')


def _within(name: str, parents: tuple[str, ...]) -> bool:
  return any(name == p or name.startswith(f'{p}.') for p in parents)


def test_all_folders_are_known():
  found = {p.parent.name for p in _ROOT.glob('*/__init__.py')}
  assert found == set(_ALLOWED)


def test_imports_only_what_its_folder_may():
  for file, name in _imports():
    folder = file.partition('/')[0]
    allowed = (folder, _READING, *_ALLOWED[folder])
    if file in _MORE:
      allowed += _MORE[file]
    if name.startswith('steepest.'):
      # `from steepest import models` names a folder, for its __path__.
      said = f'{file} imports {name}'
      assert _within(name.removeprefix('steepest.'), allowed), said


def test_folders_are_imported_through_the_namespace():
  for file, name in _imports():
    assert name.partition('.')[0] not in _ALLOWED, f'{file}: steepest.{name}'


def test_imports_nothing_banned():
  for file, name in _imports():
    allowed = _OPTIONAL[file] if file in _OPTIONAL else ()
    banned = _within(name, _BANNED) and not _within(name, allowed)
    # Its metric_writers import TensorFlow.
    banned |= name.startswith('clu.metric_writers')
    assert not banned, f'{file} imports {name}'


@pytest.mark.parametrize('file', _OPTIONAL)
def test_optional_packages_are_imported_by_functions(file):
  for statement in _FILES[file].body:
    if isinstance(statement, ast.Import | ast.ImportFrom):
      assert not _within(ast.unparse(statement).split()[1], _OPTIONAL[file])


def test_recipes_import_configurations_alone():
  allowed = ('ml_collections', 'steepest', 'difflib', 'typing')
  for file, name in _imports():
    if file.count('/') == 1 and file.startswith('experiments/'):
      recipe = not file.endswith('outside.py')
      assert not recipe or name.partition('.')[0] in allowed, (file, name)


def test_commands_do_not_import_one_another():
  entries = tuple(
    f'steepest.{file.removesuffix(".py").replace("/", ".")}'
    for file in _FILES
    if file.startswith('launch/') and file.count('/') == 1 and _entry(file)
  )
  assert 'steepest.launch.train' in entries
  for file, name in _imports():
    assert not _within(name, entries), f'{file} imports {name}'


def test_only_commands_define_flags():
  for file, tree in _FILES.items():
    calls = [
      node
      for node in ast.walk(tree)
      if isinstance(node, ast.Call)
      and isinstance(node.func, ast.Attribute)
      and node.func.attr.startswith('DEFINE_')
    ]
    # launch/cli.py has --config for those commands that call it.
    if calls and file != 'launch/cli.py':
      assert file.startswith('launch/') and _entry(file), file
    for statement in tree.body:
      if not isinstance(statement, ast.FunctionDef):
        for node in ast.walk(statement):
          assert node not in calls, f'importing {file} defines flags'
