"""Rules of the house that a reader would otherwise have to watch."""

import ast
import functools
import pathlib
import re

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from steepest.experiments import base

_ROOT = pathlib.Path(__file__).parent.parent
_FOLDERS = (
  'experiments',
  'models',
  'optimizers',
  'data',
  'training',
  'tuning',
  'eval',
  'report',
  'launch',
)
# Lists of setup.py.
_REQUIREMENTS = ('_REQUIRES', '_TEST')
_FILES = {
  path.relative_to(_ROOT).as_posix(): ast.parse(path.read_text('utf-8'))
  for folder in _FOLDERS
  for path in sorted((_ROOT / folder).rglob('*.py'))
}
_MOST_KEYS = 100
# One list of keys, not a flow of control.
_LISTS = ('get_config',)


def _text(name: str) -> str:
  return (_ROOT / name).read_text('utf-8')


def _nodes(*kinds):
  """Yields (file, node) of all nodes of some kinds."""
  for name, tree in _FILES.items():
    yield from ((name, n) for n in ast.walk(tree) if isinstance(n, kinds))


def test_files_and_functions_are_short():
  for name in _FILES:
    most = 600
    if re.fullmatch(r'experiments/(?!base)\w+\.py', name):
      most = 120
    assert len(_text(name).splitlines()) <= most, name
  for name, node in _nodes(ast.FunctionDef):
    lines = node.end_lineno - node.body[0].lineno + 1
    if ast.get_docstring(node):
      lines -= node.body[0].end_lineno - node.body[0].lineno + 1
    if node.name not in _LISTS:
      assert lines <= 60, f'{name}: {node.name} has {lines} lines'


def test_no_drawer_for_everything():
  tests = (path.as_posix() for path in (_ROOT / 'tests').rglob('*.py'))
  for name in (*_FILES, *tests):
    stem = pathlib.Path(name).stem
    assert stem not in ('utils', 'util', 'helpers', 'common', 'misc'), name


def test_configuration_has_no_defaults_elsewhere():
  """Every key exists in base.py; `.get('key', …)` would hide a mistake."""
  for name, node in _nodes(ast.Call):
    if isinstance(node.func, ast.Attribute):
      if node.func.attr in ('get', 'get_ref', 'get_oneway_ref'):
        holder = ast.unparse(node.func.value)
        said = f'{name}: {ast.unparse(node)}'
        assert not re.search(r'config|\bcfg\b', holder), said


def test_no_pickle_is_loaded():
  for name, node in _nodes(ast.Call):
    call = ast.unparse(node.func)
    said = f'{name}: {ast.unparse(node)}'
    assert call not in ('pickle.load', 'pickle.loads', 'torch.load'), said
    # Members of archives are read, never put where their names say.
    assert not re.search(r'extractall|unpack_archive', call), said
    for keyword in node.keywords:
      if keyword.arg == 'allow_pickle':
        assert ast.unparse(keyword.value) == 'False', said


def test_functions_and_files_say_what_they_do():
  for name, tree in _FILES.items():
    if name.endswith('__init__.py'):
      continue
    assert ast.get_docstring(tree), f'{name} has no docstring'
    nodes = [*tree.body]
    for node in tree.body:
      if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
        nodes += node.body
    for node in nodes:
      if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        if not node.name.startswith('_') and not _trivial(node):
          said = f'{name}: {node.name} has no docstring'
          assert ast.get_docstring(node), said


def _trivial(node: ast.FunctionDef | ast.ClassDef) -> bool:
  """Whether a method's name and few lines say it all."""
  return isinstance(node, ast.FunctionDef) and len(node.body) <= 3


def _keys_and_comments() -> list[tuple[str, str]]:
  """Returns each assignment to a key in base.py and the line above it."""
  lines = _text('experiments/base.py').splitlines()
  found = []
  for above, line in zip(lines, lines[1:]):
    match = re.match(r'  \w+\.(\w+) = (?!.*ConfigDict)', line)
    if match:
      found.append((match[1], above.strip()))
  return found


def test_every_key_is_explained_and_they_stay_few():
  documented = _keys_and_comments()
  keys = [key.rpartition('.')[2] for key in base.flatten(base.get_config())]
  known = [k.rpartition('.')[2] for k in base.flatten(base.get_study_config())]
  assert len(keys) <= _MOST_KEYS
  # Some keys share one comment.
  # Those of each optimizer are set by name, in a loop.
  known = [k for k in known if not k.startswith('lrs_')]
  shared = ('optimizers',)
  for key, comment in documented:
    assert key in known
    if key not in shared:
      assert comment.startswith('#'), f'{key} has no comment above it'
  assert set(known) <= {key for key, _ in documented}


def test_real_valued_defaults_are_floats():
  """So `--config.optimizer.lr=1` is no type error."""
  config = base.get_study_config()
  for key in base.flatten(config):
    *path, leaf = key.split('.')
    # Of a placeholder too, whose value is None.
    kind = functools.reduce(lambda c, name: c[name], path, config).get_type(
      leaf
    )
    if leaf in ('lr', 'eps', 'rho', 'weight_decay', 'clip_norm', 'rope_base'):
      assert kind is float, key
    if leaf.endswith(('_fraction', '_eps')):
      assert kind is float, key


_FORBIDDEN = re.compile(r'/(?:work|tmp|root|home|Users)/|localhost:\d')


def test_no_machine_is_named():
  for name in _FILES:
    assert not (found := _FORBIDDEN.search(_text(name))), (name, found)


def test_pins_lie_within_the_bounds_of_what_is_installed():
  """constraints.txt is the newest that was tested, setup.py says from where."""
  assigned = {
    node.targets[0].id: ast.literal_eval(node.value)
    for node in ast.parse(_text('setup.py')).body
    if isinstance(node, ast.Assign) and node.targets[0].id in _REQUIREMENTS
  }
  assert assigned.keys() == set(_REQUIREMENTS)
  pins = [Requirement(line) for line in _text('constraints.txt').splitlines()]
  for requirement in map(Requirement, sum(assigned.values(), [])):
    name = canonicalize_name(requirement.name)
    pinned = [p for p in pins if canonicalize_name(p.name) == name]
    assert pinned, f'constraints.txt has no {requirement}'
    for [pin] in (p.specifier for p in pinned):
      assert requirement.specifier.contains(pin.version), f'{requirement} {pin}'
    if requirement in map(Requirement, assigned['_REQUIRES']):
      bounds = {bound.operator for bound in requirement.specifier}
      assert bounds == {'>=', '<'}, requirement


def test_hints_name_extras_that_there_are():
  """Or packages that want an environment of their own."""
  [call] = [
    node
    for node in ast.walk(ast.parse(_text('setup.py')))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'setup'
  ]
  [extras] = [k.value for k in call.keywords if k.arg == 'extras_require']
  known = {f"'steepest[{ast.literal_eval(key)}]'" for key in extras.keys}
  known |= {
    'skypilot',
    'xmanager',
    "'steepest[{platform}]'",
    '{_installed(job',
  }
  found = set()
  for name in _FILES:
    # Strings that go on in the next line.
    text = re.sub(r"[\"']\s*\n\s*f?[\"']", '', _text(name))
    words = re.findall(r'pip install (?!-)([^\s,);]+)', text)
    found.update((name, word.strip('"').strip('`')) for word in words)
  assert len(found) >= 10
  for name, word in sorted(found):
    assert any(word.startswith(k) for k in known), f'{name}: pip install {word}'
