"""What a study says of unequal searches."""

import pytest

from steepest.experiments import base, cpu_study, quickstart
from steepest.tuning import parity


@pytest.mark.parametrize('recipe', [quickstart, cpu_study])
def test_shipped_studies_search_alike(recipe):
  assert parity.notes(recipe.get_config()) == []


@pytest.mark.parametrize(
  ('study', 'said'),
  [
    (
      {'lrs_lion': (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)},
      ['in trials: adamw 4, lion 5; study.search=random', 'adamw 8, lion 16'],
    ),
    (
      {'lrs_lion': (1e-3, 4e-3, 1.6e-2, 6.4e-2)},
      [
        'rates in factors of adamw 2, lion 4',
        'span factors of adamw 8, lion 64',
      ],
    ),
    # The same span in one gap that is wider.
    ({'lrs_lion': (1e-3, 1.5e-3, 2e-3, 8e-3)}, ['factors of adamw 2, lion 4']),
    (
      {'optimizers': 'adamw,sophia', 'space_rho': (0.01, 0.1)},
      ['in trials: adamw 4, sophia 8'],
    ),
    (
      {
        'optimizers': 'adamw,sophia',
        'space_rho': (0.01, 0.1),
        'search': 'random',
      },
      ['in hyperparameters: adamw 1, sophia 2'],
    ),
    # Equal factors, rounded.
    ({'lrs_lion': (3.3e-4, 6.67e-4, 1.333e-3, 2.65e-3)}, []),
  ],
)
def test_what_is_unequal_is_said(study, said):
  config = base.get_study_config()
  config.study.update(optimizers='adamw,lion')
  config.study.lrs_adamw = (1e-3, 2e-3, 4e-3, 8e-3)
  config.study.lrs_sophia = (1e-3, 2e-3, 4e-3, 8e-3)
  config.study.lrs_lion = (1e-4, 2e-4, 4e-4, 8e-4)
  config.study.update(study)
  notes = parity.notes(config)
  assert len(notes) == len(said)
  for note, part in zip(notes, said):
    assert part in note
