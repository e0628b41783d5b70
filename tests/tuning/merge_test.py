"""Runs from elsewhere in a study's directory; their files are made up."""

import gzip
import io
import json
import math
import pathlib
import shutil
import tarfile

import pytest

from steepest.experiments import base
from steepest.training import config as config_lib
from steepest.tuning import cells, merge, study as studies

_LRS = (1e-3, 2e-3, 4e-3, 8e-3)


def _config(**study):
  config = base.get_study_config()
  config.steps, config.log_every, config.checkpoint_every = 4, 1, 2
  config.study.update(
    models='gpt2',
    optimizers='adamw,lion',
    target_steps=6,
    search='grid',
    space='lr',
    lrs_adamw=_LRS,
    lrs_lion=_LRS,
    max_extensions=20,
  )
  config.study.update(study)
  return config


def _finish(run, steps=None, **summary):
  """Leaves what a run does that ended, or with `steps` a checkpoint of them."""
  run.directory.mkdir(parents=True, exist_ok=True)
  config = config_lib.as_json(config_lib.resolve(run.config))
  (run.directory / 'config.json').write_text(json.dumps(config))
  loss = 3 + math.log(config['optimizer']['lr'] / 3e-3) ** 2
  done = steps or run.config.steps
  rows = [{'step': step, 'train/loss': loss} for step in range(done)]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (run.directory / 'metrics.jsonl').write_text(text)
  (run.directory / 'checkpoints' / str(done)).mkdir(parents=True)
  if steps is None:
    found = {'status': 'finished', 'steps': done, 'eval_loss': None}
    found |= {'train_loss': loss, **summary}
    (run.directory / 'summary.json').write_text(json.dumps(found))


def _work(study, most=1000):
  """Does at most so many runs of a study."""
  while most and (run := study.take(0)) is not None:
    _finish(run)
    study.end(0, cells.ended(run.config, run.directory), None)
    most -= 1


def _losses(workdir):
  return {
    path.parent.relative_to(workdir).as_posix(): (
      json.loads(path.read_text())['train_loss']
    )
    for path in workdir.rglob('summary.json')
  }


def _back(config):
  """Files have other names there."""
  config['data']['source'] = config['data']['source'].removeprefix('there')
  return config


def _merge(config, folder, rename):
  """Takes what is there into the study that is here."""
  into = studies.Study(config, folder / 'here')
  waiting = lambda: [(run.config, run.directory) for run in into.waiting()]
  return merge.into(folder / 'here', waiting, folder / 'there', rename)


@pytest.mark.parametrize(
  'study', [{}, {'search': 'tpe', 'trials': 8}, {'search': 'sobol'}]
)
@pytest.mark.parametrize('here', [0, 5, 10])
def test_what_was_done_elsewhere_is_not_done_again(study, here, tmp_path):
  config = _config(**study)
  _work(studies.Study(config, tmp_path / 'alone'))
  wanted = _losses(tmp_path / 'alone')
  assert len(wanted) > 10
  _work(studies.Study(config, tmp_path / 'here'), here)
  elsewhere = _config(**study)
  elsewhere.data.source = 'there'
  _work(studies.Study(elsewhere, tmp_path / 'there'))
  before = _losses(tmp_path / 'here')
  times = {p: p.stat().st_mtime_ns for p in (tmp_path / 'here').rglob('*.json')}
  merged = _merge(config, tmp_path, _back)
  assert not merged.refused
  assert sorted(merged.taken + merged.kept) == sorted(wanted)
  assert sorted(merged.kept) == sorted(before)
  assert _losses(tmp_path / 'here') == wanted
  for path, modified in times.items():
    assert path.stat().st_mtime_ns == modified
  # The study goes on from there, and there is nothing left to do.
  again = studies.Study(config, tmp_path / 'here')
  assert again.take(0) is None and again.over


def test_a_further_run_is_never_replaced_by_a_shorter_one(tmp_path):
  config = _config(seeds=4)
  for name in ('here', 'there'):
    study = studies.Study(config, tmp_path / name)
    while study.take(0, ('trials',)) is not None:
      run = study._running[0]
      _finish(run)
      study.end(0, cells.ended(run.config, run.directory), None)
    runs = [r for r in study.waiting() if str(r.stage.cell) == 'gpt2-adamw']
    #  here  4      4      ended  –
    #  there 2      ended  2      2
    steps = {'here': (4, 4, None, 0), 'there': (2, None, 2, 2)}[name]
    for run, done in zip(runs, steps, strict=True):
      if done != 0:
        _finish(run, done, note=name)
        (run.directory / 'from').write_text(name)
  merged = _merge(config, tmp_path, lambda config: config)
  home = tmp_path / 'here' / 'finals' / 'gpt2-adamw'
  assert not merged.refused
  assert [(home / f'seed={i}' / 'from').read_text() for i in range(4)] == [
    *('here', 'there', 'here', 'there')
  ]
  assert sorted(merged.taken) == [
    f'finals/gpt2-adamw/seed={seed}' for seed in (1, 3)
  ]


def test_a_run_of_its_own_takes_the_place_of_its_directory(tmp_path):
  config = _config(optimizers='adamw')
  [first, *_] = studies.Study(config, tmp_path / 'study').waiting()
  home = tmp_path / 'home'
  for there, here, taken in ((2, 0, True), (2, 4, False), (None, 4, True)):
    runs = [
      first._replace(directory=path) for path in (tmp_path / 'found', home)
    ]
    for run, steps in zip(runs, (there, here), strict=True):
      shutil.rmtree(run.directory, ignore_errors=True)
      run.directory.mkdir()
      if steps != 0:
        _finish(run, steps)
      (run.directory / 'from').write_text(run.directory.name)
    waiting = lambda: [(first.config, home)]
    merged = merge.into(home, waiting, tmp_path / 'found', _back)
    assert (merged.taken == ['.']) == taken and not merged.refused
    assert (home / 'from').read_text() == ('found' if taken else 'home')
    shutil.rmtree(tmp_path / 'found.replaced', ignore_errors=True)


def test_another_or_a_damaged_run_is_left_out(tmp_path):
  config = _config(optimizers='adamw')
  there = studies.Study(config, tmp_path / 'there')
  first, second, third, fourth = there.waiting()
  _finish(first)
  second.config.optimizer.lr = 5e-3
  _finish(second)
  _finish(third, steps=3)
  summary = {'status': 'finished', 'steps': 4, 'eval_loss': 1.0}
  (third.directory / 'summary.json').write_text(json.dumps(summary))
  _finish(fourth)
  (fourth.directory / 'summary.json').write_text('{"status": "fin')
  stray = tmp_path / 'there' / 'finals' / 'gpt2-adamw' / 'seed=0'
  (stray / 'deeper').mkdir(parents=True)
  (stray / 'config.json').write_text('{}')
  merged = _merge(config, tmp_path, _back)
  at = 'trials/gpt2-adamw/'
  assert merged.taken == [f'{at}000']
  assert _losses(tmp_path / 'here').keys() == {f'{at}000'}
  said = merged.refused
  assert 'optimizer.lr=0.005, asked for 0.002' in said[f'{at}001']
  assert said[f'{at}002'] == 'its summary has 4 steps and its rows 3'
  assert 'summary.json is damaged' in said[f'{at}003']
  assert said['finals/gpt2-adamw/seed=0'].startswith('this study does not')
  assert not any('\n' in text for text in said.values())


def _archive(path, *members):
  with tarfile.open(path, 'w:gz') as tar:
    for name, kind in members:
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, '/etc/passwd'
      info.size = 5 if kind == tarfile.REGTYPE else 0
      tar.addfile(info, io.BytesIO(b'hello'))
  return path


@pytest.mark.parametrize(
  'name, kind',
  [
    ('/results/a', tarfile.REGTYPE),
    ('results/../../a', tarfile.REGTYPE),
    ('..', tarfile.REGTYPE),
    ('a', tarfile.REGTYPE),
    ('results/a', tarfile.SYMTYPE),
    ('results/a', tarfile.LNKTYPE),
    ('results/a', tarfile.FIFOTYPE),
    ('results/a', tarfile.CHRTYPE),
    ('results/good', tarfile.REGTYPE),
  ],
)
def test_names_that_lead_elsewhere_are_refused(name, kind, tmp_path):
  beside = tmp_path / 'deep' / 'home'
  beside.mkdir(parents=True)
  good = ('results/good', tarfile.REGTYPE)
  archive = _archive(tmp_path / 'a.tar.gz', good, (name, kind))
  with pytest.raises(ValueError, match='nothing is merged') as error:
    with merge.unpacked(archive, beside):
      pytest.fail('it was unpacked')
  assert '\n' not in str(error.value)
  files = [path for path in tmp_path.rglob('*') if not path.is_dir()]
  assert files == [archive] and not list(beside.iterdir())


@pytest.mark.parametrize('kept', [0, 1, 9, 60, -30, -9])
def test_an_archive_that_is_cut_short_is_refused(kept, tmp_path):
  data = _archive(
    tmp_path / 'a.tar.gz', ('results/a/b', tarfile.REGTYPE)
  ).read_bytes()
  (tmp_path / 'a.tar.gz').write_bytes(data[:kept])
  with pytest.raises(ValueError, match='is damaged'):
    with merge.unpacked(tmp_path / 'a.tar.gz', tmp_path):
      pytest.fail('it was unpacked')
  (tmp_path / 'a.tar.gz').write_bytes(gzip.compress(b'no archive' * 99))
  with pytest.raises(ValueError, match='is damaged'):
    with merge.unpacked(tmp_path / 'a.tar.gz', tmp_path):
      pytest.fail('it was unpacked')
  (tmp_path / 'a.tar.gz').write_bytes(data)
  with merge.unpacked(tmp_path / 'a.tar.gz', tmp_path) as found:
    assert (found / 'a' / 'b').read_bytes() == b'hello'
  assert [p.name for p in pathlib.Path(tmp_path).iterdir()] == ['a.tar.gz']
