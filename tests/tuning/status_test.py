"""Views of runs, from directories as training leaves them."""

import contextlib
import json
import os
import shutil
import socket
import subprocess

import pytest
from rich.console import Console

from steepest.data import locks, reading
from steepest.experiments import base
from steepest.tuning import status

_NOW = 1_800_000_000.0


def _run(
  folder,
  losses,
  *,
  steps=100,
  seconds=0.5,
  waited=0.0,
  age=1.0,
  summary=None,
  events=(),
  checkpoints=(),
  checkpoint_every=0,
  **numbers,
):
  """Writes a run of one row a step; the last one is `age` seconds old."""
  folder.mkdir(parents=True)
  values = {'steps': steps, 'checkpoint_every': checkpoint_every}
  (folder / 'config.json').write_text(json.dumps(values), 'utf-8')
  rows = [
    {
      'step': i,
      'tokens': 1000 * (i + 1),
      **({} if loss is None else {'train/loss': loss}),
      'seconds': seconds * (i + 1),
      'data/wait_seconds': waited * (i + 1),
      'tokens_per_second': 1000 / seconds,
      'mfu': 0.4,
      'goodput': 0.83,
      **numbers,
    }
    for i, loss in enumerate(losses)
  ]
  if rows:
    path = folder / 'metrics.jsonl'
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    # Half a row, as a run that is writing leaves it.
    path.write_text(text + '{"step": 9', 'utf-8')
    os.utime(path, (_NOW - age, _NOW - age))
  if summary:
    (folder / 'summary.json').write_text(json.dumps(summary), 'utf-8')
  for step in checkpoints:
    path = folder / 'checkpoints' / str(step)
    path.mkdir(parents=True)
    os.utime(path, (_NOW - 90, _NOW - 90))
  if events:
    text = ''.join(json.dumps(event) + '\n' for event in events)
    (folder / 'events.jsonl').write_text(text, 'utf-8')
  return folder


def _line(slope, count, start=4.0):
  return [start + slope * i for i in range(count)]


def test_numbers_are_those_of_the_rows(tmp_path):
  run = _run(tmp_path / 'a', _line(-0.01, 60), checkpoints=(20, 40))
  found = status.read(run, _NOW)
  assert (found.state, found.done, found.steps) == ('running', 60, 100)
  assert found.loss == pytest.approx(4 - 0.59)
  assert found.slope == pytest.approx(-10)
  assert found.tokens_per_second == pytest.approx(2000)
  assert found.mfu == pytest.approx(0.4)
  assert found.wait == 0
  assert found.goodput == 0.83
  assert found.left == pytest.approx(40 * 0.5)
  assert (found.checkpoint, found.checkpoint_age) == (40, 90)
  assert found.alarms == ()


@pytest.mark.parametrize(
  'keys, alarm',
  [
    ({'age': 3600.0}, 'no progress for 60 min'),
    ({'waited': 0.5}, 'waits for data'),
    (
      {
        'process/slow': 3,
        'process/slowest_seconds': 0.6,
        'process/median_seconds': 0.25,
      },
      'process 3 is 2.4x slower',
    ),
    ({'checkpoint_every': 5, 'checkpoints': (5,)}, 'checkpoints are missing'),
    (
      {'events': [{'time': _NOW - 5, 'kind': 'rollback', 'step': 7}]},
      'rollback at step 7',
    ),
    (
      {'summary': {'status': 'diverged', 'steps': 30}},
      'diverged at step 30',
    ),
  ],
)
def test_what_wants_attention_is_said(tmp_path, keys, alarm):
  run = _run(tmp_path / 'a', _line(-0.01, 30), **keys)
  # Its process lives.
  with locks.hold(run, 'training there'):
    assert status.read(run, _NOW).alarms == (alarm,)


@pytest.mark.parametrize(
  'holder, age, state',
  [
    ('this process', 3600.0, 'running'),
    ('one that is gone', 1.0, 'dead'),
    ('one elsewhere', 1.0, 'running'),
    ('one elsewhere', 3600.0, 'dead'),
    ('none', 1.0, 'running'),
    ('none', 60.0, 'stopped'),
  ],
)
def test_stopped_dead_and_running_are_told_apart(tmp_path, holder, age, state):
  """Of a study's run too, whose directory the study holds."""
  study = tmp_path / 'study'
  run = _run(study / 'trials' / 'a' / '0', _line(-0.01, 30), age=age)
  gone = subprocess.Popen(['true'])
  gone.wait()
  owner = {'process': gone.pid, 'host': socket.gethostname()}
  if holder == 'one elsewhere':
    owner['host'] = 'elsewhere'
  with contextlib.ExitStack() as stack:
    if holder == 'this process':
      stack.enter_context(locks.hold(study, 'at this study'))
    elif holder != 'none':
      (study / locks.NAME).write_text(json.dumps(owner))
    found = status.read(run, _NOW)
    assert found.state == state
    assert (found.left is not None) == (state == 'running')
    dead = [a for a in found.alarms if a.startswith('no process is left')]
    assert len(dead) == (state == 'dead')


def test_a_rising_loss_and_none_at_all_are_said(tmp_path):
  rising = _run(tmp_path / 'a', [*_line(-0.01, 30), *[5.0] * 6])
  [alarm] = status.read(rising, _NOW).alarms
  assert alarm == 'loss rose from 3.710'
  bad = _run(tmp_path / 'b', [4.0, float('nan')])
  assert 'loss is not a number' in status.read(bad, _NOW).alarms


def test_old_events_are_no_news(tmp_path):
  events = [{'time': _NOW - 1e5, 'kind': 'rollback', 'step': 7}]
  run = _run(tmp_path / 'a', _line(-0.01, 30), events=events)
  assert status.read(run, _NOW).alarms == ()


def test_a_longer_run_than_the_summary_goes_on(tmp_path):
  summary = {'status': 'finished', 'steps': 20}
  run = _run(tmp_path / 'a', _line(-0.01, 30), summary=summary)
  assert status.read(run, _NOW).state == 'running'
  ended = {'status': 'finished', 'steps': 100}
  run = _run(tmp_path / 'b', _line(-0.01, 100), summary=ended)
  assert status.read(run, _NOW).state == 'finished'


def test_a_study_shows_its_runs_and_models_are_none(tmp_path):
  study = tmp_path / 'study'
  _run(study / 'trials' / 'one', _line(-0.01, 10))
  _run(study / 'trials' / 'two', [])
  _run(study / 'final' / 'x', _line(0, 9), summary={'status': 'pruned'})
  (study / 'config.json').write_text('{"steps": 5, "study": {}}', 'utf-8')
  (study / 'hf').mkdir()
  (study / 'hf' / 'config.json').write_text('{"hidden_size": 5}', 'utf-8')
  (study / 'empty').mkdir()
  found = status.find([str(study), str(study / 'trials')])
  assert [p.name for p in found] == ['x', 'one', 'two']
  states = [status.read(p, _NOW).state for p in found]
  assert states == ['pruned', 'running', 'waiting']
  with pytest.raises(FileNotFoundError, match='no such directory'):
    status.find([str(study / 'nothing')])
  with pytest.raises(FileNotFoundError, match='holds no run yet'):
    status.find([str(study / 'empty')])


@pytest.mark.parametrize('layers', [0, 100])
def test_only_the_end_of_a_long_file_is_read(tmp_path, monkeypatch, layers):
  """Of rows short and long: those of many layers have many numbers."""
  losses = _line(-1e-4, 1000)
  losses[:900] = [9.0] * 900
  names = [f'update_rms/layer/block_{i}' for i in range(layers)]
  run = _run(tmp_path / 'a', losses, steps=2000, **dict.fromkeys(names, 1e-5))
  parsed = []
  parse = reading.parse
  monkeypatch.setattr(
    reading, 'parse', lambda text: parsed.append(text) or parse(text)
  )
  found = status.read(run, _NOW)
  assert found.done == 1000
  assert found.slope == pytest.approx(-0.1)
  assert found.tokens_per_second == pytest.approx(2000)
  assert found.alarms == ()
  # 50 rows, and config.json twice.
  assert 50 < len(parsed) < 55


@pytest.mark.parametrize(
  'name, text',
  [
    ('metrics.jsonl', '{"step": 1}\n'),
    ('metrics.jsonl', 'nonsense\n'),
    ('metrics.jsonl', '[]\n'),
    ('events.jsonl', '{"time": "now"}\n'),
    ('summary.json', '{"status": "finished"}'),
    ('config.json', '{"steps": "many"}'),
    ('config.json', '{"steps": 1' + '0' * 400 + '}'),
    ('config.json', '[' * 100_000),
    ('metrics.jsonl', '[' * 100_000 + '\n'),
    ('summary.json', '{"status": 5, "steps": 30}'),
    ('summary.json', '{"status": "[/x]", "steps": "\\ud800"}'),
    ('events.jsonl', '{"time": 1e999, "kind": {}, "step": 3}\n'),
  ],
)
def test_a_damaged_run_hides_no_other(tmp_path, name, text):
  for folder in ('a', 'b'):
    _run(tmp_path / folder, _line(-0.01, 30))
  (tmp_path / 'a' / name).write_text(text, 'utf-8')
  damaged, good = (
    status.read(run, _NOW) for run in status.find([str(tmp_path)])
  )
  [alarm] = damaged.alarms
  assert damaged.state == 'unreadable' and alarm.startswith('cannot be read: ')
  assert (good.state, good.done) == ('running', 30)
  console = Console(width=200, color_system=None)
  with console.capture() as captured:
    console.print(status.table([good, damaged], None))
  assert '30/100' in captured.get() and 'cannot be read' in captured.get()


def test_markup_and_numbers_beyond_reason_are_shown(tmp_path):
  ended = {'status': '[/x]', 'steps': 100}
  runs = [
    _run(tmp_path / 'a', _line(0, 9), summary=ended),
    _run(tmp_path / 'b', [1e308, -1e308, 1e308], tokens_per_second=1e-320),
  ]
  console = Console(width=200, color_system=None)
  with console.capture() as captured:
    console.print(status.table([status.read(r, _NOW) for r in runs], None))
  assert captured.get().count('[/x]') == 2


def test_checkpoints_and_runs_that_vanish_meanwhile_are_passed_over(
  tmp_path, monkeypatch
):
  run = _run(tmp_path / 'a', _line(-0.01, 30), checkpoints=(20,))
  # As one that is listed and then deleted.
  (run / 'checkpoints' / '40').symlink_to(tmp_path / 'gone')
  assert status.read(run, _NOW).checkpoint == 20
  gone = _run(tmp_path / 'b' / 'c', _line(-0.01, 30))
  walk = os.walk

  def removing(root):
    for at, folders, files in walk(root):
      if at == str(gone):
        shutil.rmtree(gone)
      yield at, folders, files

  monkeypatch.setattr(os, 'walk', removing)
  found = [status.read(p, _NOW).state for p in status.find([str(tmp_path)])]
  assert found == ['running', 'unreadable']


def test_the_view_puts_what_matters_first(tmp_path):
  runs = [
    _run(tmp_path / 'ended', _line(0, 9), summary={'status': 'pruned'}),
    _run(tmp_path / '[red]b', _line(-0.01, 30)),
    _run(tmp_path / 'slow', _line(-0.01, 30), waited=1.0),
  ]
  found = [status.read(run, _NOW) for run in runs]
  console = Console(width=200, color_system=None)
  with console.capture() as captured:
    console.print(status.table(found, None))
  title, heading, *rows = captured.get().splitlines()
  assert title.strip() == '2 running, 1 pruned'
  assert heading.split()[0] == 'run'
  # Markup in names is not obeyed.
  assert [row.split()[0] for row in rows] == ['slow', '[red]b', 'ended']
  assert 'waits for data' in rows[0]
  with console.capture() as captured:
    console.print(status.table(found, 1))
  assert '2 not shown' in captured.get()


def test_time_left_is_by_what_this_process_did(tmp_path, monkeypatch, capsys):
  """Not by what a resumed run had done at another time."""
  ended, resumed, new = (tmp_path / name for name in 'abc')
  _run(resumed, [3.0] * 80)
  clock = [0.0]
  monkeypatch.setattr(status.time, 'monotonic', lambda: clock[0])
  display = status.StudyDisplay({ended: 1, resumed: 2, new: 1}, [ended], [0])
  display.begin(0, resumed, 'resumed')
  clock[0] = 100.0
  assert display._status() == '1 of 3 runs'
  # 0.4 of 1.4 in 100 seconds.
  shutil.rmtree(resumed)
  _run(resumed, [3.0] * 100)
  assert display._status() == '1 of 3 runs, 4 min left'
  display.end(0, 'loss 3')
  assert capsys.readouterr().out.startswith(' 75% loss 3')


def test_a_log_without_a_terminal_says_the_time_left(capsys):
  config = base.get_config()
  config.steps = 200
  config.model.name, config.optimizer.name = 'llama', 'lion'
  row = {'train/loss': 3.0, 'tokens_per_second': 500.0}
  with status.TrainingDisplay(config, 'run') as display:
    for step in (9, 19, 39):
      display.on_row({'step': step, 'tokens': 1000 * (step + 1)} | row)
  # 180,000 and 160,000 tokens at 500 a second; a line every tenth.
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(' mfu n/a ')[1] for line in lines] == [
    '6 min left',
    '5 min left',
  ]
