"""`python -m launch.prepare` as a user runs it."""

import json


def _corpus(path, bad=0):
  records = [
    json.dumps({'text': f'document {i} ' * 60, 'source': 'counting'})
    for i in range(120)
  ]
  path.write_text('\n'.join(records + ['{'] * bad) + '\n')


def test_prepares_describes_and_does_nothing_twice(run_command, tmp_path):
  _corpus(tmp_path / 'a.jsonl', bad=1)
  out = tmp_path / 'shards'
  arguments = [
    'prepare',
    f'--input={tmp_path}/*.jsonl',
    '--tokenizer=bpe-train:300',
    f'--out={out}',
    '--workers=1',
  ]
  done = run_command(*arguments)
  assert done.returncode == 0, done.stderr
  assert '120 documents' in done.stdout and '1 bad lines' in done.stdout
  manifest = json.loads((out / 'manifest.json').read_text())
  for key in ('documents', 'duplicates', 'rejected', 'tokens', 'seed'):
    assert isinstance(manifest[key], int)
  assert set(manifest['sources']['counting']) == {
    'documents',
    'tokens',
    'bytes',
  }
  assert set(manifest['tokenizer']) == {'name', 'sha256', 'vocab_size'}
  before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
  assert run_command(*arguments).returncode == 0
  assert before == {p: p.stat().st_mtime_ns for p in out.iterdir()}
  other = run_command(*arguments, '--seed=3')
  assert other.returncode == 1
  assert other.stderr.startswith('error: ') and 'seed' in other.stderr
  shown = run_command('prepare', '--describe', str(out))
  assert shown.returncode == 0, shown.stderr
  assert 'counting' in shown.stdout and 'document' in shown.stdout
