"""Searches by Optuna's tree-structured Parzen estimator."""

from collections.abc import Mapping
import pathlib
from typing import Any

from ml_collections import ConfigDict

from steepest.tuning import search, space
from steepest.tuning.search import Part, Trial


class Tpe:
  """Trials that Optuna asks for; see tuning/search.py.

  The storage is optuna.db (SQLite) in the directory of the cell's trials.
  Whoever calls `trials` must hold that directory's lock, so that processes
  that share a study neither ask nor tell twice. The sampler is seeded by the
  trial's number: given the same losses, a study that was killed asks for the
  same trials. The first quarter of them, at least four, is drawn at random.
  """

  def __init__(
    self, config: ConfigDict, optimizer: str, directory: pathlib.Path
  ):
    self._dimensions = space.dimensions(config, optimizer)
    self._range = search.Range(config, optimizer)
    study = config.study
    self._seed = study.search_seed
    self._random = max(4, study.trials // 4)
    self._at_once = study.parallel_trials
    self._path = directory / 'optuna.db'
    self._optuna: Any = None

  def trials(self, losses: Mapping[str, float]) -> list[Trial]:
    """As `Search.trials`; tells the losses that are new."""
    study = self._open()
    found = self._tell(study, losses)
    wanted = 0
    part: Part | None = self._range.first
    while part is not None:
      wanted += part.trials
      running = [t for t in found if t.name not in losses]
      while len(found) < wanted and len(running) < self._at_once:
        found.append(self._ask(study, len(found), part))
        running.append(found[-1])
      if running:
        break
      part = self._range.wider(
        part, search.best_trial(found[:wanted], losses).values['lr']
      )
    return found

  def _open(self) -> Any:
    if self._optuna is None:
      try:
        import optuna
      except ImportError as error:
        raise ValueError(
          "study.search='tpe' needs Optuna: pip install optuna"
        ) from error
      optuna.logging.set_verbosity(optuna.logging.ERROR)
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._optuna = optuna.create_study(
        storage=f'sqlite:///{self._path}',
        study_name='search',
        direction='minimize',
        load_if_exists=True,
      )
    return self._optuna

  def _ask(self, study: Any, number: int, part: Part) -> Trial:
    import optuna

    study.sampler = optuna.samplers.TPESampler(
      n_startup_trials=self._random,
      seed=(self._seed * 100_003 + number) % 2**32,
      constant_liar=self._at_once > 1,
    )
    distributions = {}
    for d in self._dimensions:
      low, high = part.tried if d.name == 'lr' else d.bounds
      distributions[d.label] = optuna.distributions.FloatDistribution(low, high)
    asked = study.ask(distributions)
    return self._trial(asked.number, asked.params)

  def _tell(self, study: Any, losses: Mapping[str, float]) -> list[Trial]:
    """Tells the losses that are new and returns all trials."""
    import optuna

    state = optuna.trial.TrialState
    found = []
    for asked in study.get_trials(deepcopy=False):
      if any(d.label not in asked.params for d in self._dimensions):
        # Killed while it was asked for.
        if asked.state == state.RUNNING:
          study.tell(asked.number, state=state.FAIL)
        continue
      found.append(self._trial(asked.number, asked.params))
      if asked.state == state.RUNNING and found[-1].name in losses:
        study.tell(asked.number, losses[found[-1].name])
    return found

  def _trial(self, number: int, coordinates: Mapping[str, float]) -> Trial:
    values = {d.name: d.value(coordinates[d.label]) for d in self._dimensions}
    return Trial(f'trial={number:03d}', values)
