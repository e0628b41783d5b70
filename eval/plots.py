"""All figures of the report, as Plotly figures in plain dicts."""

from typing import Any

from steepest.eval import plots_curves
from steepest.eval import plots_loss
from steepest.eval import plots_scores
from steepest.eval import plots_training
from steepest.eval import plots_tuning
from steepest.eval.comparison import Comparison


def figures(comparison: Comparison) -> dict[str, dict[str, Any]]:
  """Returns id -> {'data', 'layout'} of those that there are data for."""
  drawn = {
    'loss': plots_loss.loss_figure(comparison),
    'score-curves': plots_curves.curve_figure(comparison),
    'lr': plots_tuning.lr_figure(comparison),
    'scores': plots_scores.score_figure(comparison),
    'training': plots_training.training_figure(comparison),
  }
  return {name: figure for name, figure in drawn.items() if figure is not None}
