"""What the site has beside the pages: every key, every command, linked code.

MkDocs calls the functions named `on_…` (mkdocs.yml). A page links to code as
it lies in the repository; on the site the link leads to a page with the file.
"""

import pathlib
import posixpath
import re
import subprocess
import sys

from mkdocs.structure.files import File

_ROOT = pathlib.Path(__file__).parent.parent
_LINK = re.compile(r'\]\(((?:\.\./)+[^)#\s]+)')
_CODE = re.compile(r'`[^`\n]+`')
_FILE = re.compile(r'^```(\w+) (\S+)$', re.M)
_GROUP = re.compile(r'  c\.(\w+) = .*ConfigDict\(')
_KEY = re.compile(r'  (\w+)\.(\w+) = (.*)')
_LANGUAGES = {'.py': 'python', '.md': 'markdown'}


def on_files(files, config):
  """Adds the generated pages to `files`."""
  pages = {'reference/config.md': keys(), 'reference/commands.md': commands()}
  for file in files.documentation_pages():
    text = pathlib.Path(file.abs_src_path).read_text('utf-8')
    for link in _LINK.findall(text):
      path = linked(file.src_uri, link)
      if path:
        pages[f'code/{path}.md'] = code(path)
  for uri, text in pages.items():
    files.append(File.generated(config, uri, content=text))
  return files


def on_page_markdown(markdown, page, **_):
  """Leads links to files of the repository to the pages that show them."""
  here = page.file.src_uri
  if here.startswith('code/'):
    return markdown

  def lead(link):
    path = linked(here, link[1])
    if not path:
      return link[0]
    to = posixpath.relpath(f'code/{path}.md', posixpath.dirname(here) or '.')
    return f']({to}'

  # Unlike GitHub, MkDocs takes bars in code as they are.
  bare = _CODE.sub(lambda code: code[0].replace(r'\|', '|'), markdown)
  # A file's name is a title there.
  return _FILE.sub(r'```\1 title="\2"', _LINK.sub(lead, bare))


def linked(page: str, link: str) -> str:
  """Returns the path of the file outside docs/ that a link means, or ''."""
  folder = posixpath.join('docs', posixpath.dirname(page))
  path = posixpath.normpath(posixpath.join(folder, link))
  outside = not path.startswith('docs/') and (_ROOT / path).is_file()
  return path if outside else ''


def code(path: str) -> str:
  """Returns a page with the file at `path`."""
  language = _LANGUAGES.get(pathlib.Path(path).suffix, 'text')
  text = (_ROOT / path).read_text('utf-8')
  return f'# {path}\n\n````{language}\n{text}\n````\n'


def keys() -> str:
  """Returns the page of all keys, from the comments in experiments/base.py.

  Raises:
    ValueError: a key has no comment.
  """
  groups: dict[str, list[str]] = {}
  comment: list[str] = []
  source = (_ROOT / 'experiments/base.py').read_text('utf-8')
  for line in source.splitlines():
    if line.startswith('  # '):
      comment.append(line.removeprefix('  # '))
      continue
    found = _KEY.match(line)
    if found and not comment and not line.endswith('ConfigDict()'):
      raise ValueError(f'experiments/base.py: {line.strip()}: no comment')
    if found and comment and found[2] != found[1]:
      group, name, value = found.groups()
      prefix = '' if group == 'c' else f'{group}.'
      value = re.sub(r'placeholder\(.*\)', 'None', value)
      meaning = ' '.join(comment).replace('|', r'\|').replace("''", "`''`")
      groups.setdefault(group, []).append(
        f'| `{prefix}{name}` | `{value}` | {meaning} |'
      )
    if not _GROUP.match(line):
      comment = []
  head = 'Set one in a recipe, or as `--config.KEY=VALUE`.'
  lines = ['# Every key', '', head]
  for group, rows in groups.items():
    title = 'The run' if group == 'c' else group
    lines += ['', f'## {title}', '', '| key | default | meaning |']
    lines += ['|---|---|---|', *rows]
  return '\n'.join(lines) + '\n'


def commands() -> str:
  """Returns the page of what each command says to --help."""
  lines = ['# Every command', '']
  for path in sorted((_ROOT / 'launch').glob('*.py')):
    if 'if __name__' not in path.read_text('utf-8'):
      continue
    done = subprocess.run(
      [sys.executable, '-m', f'steepest.launch.{path.stem}', '--help'],
      capture_output=True,
      text=True,
      check=False,
    )
    lines += [f'## {path.stem}', '', '```text', done.stdout.strip(), '```', '']
  return '\n'.join(lines)
