"""All figures of the report, as Plotly figures in plain dicts."""

from typing import Any

from steepest.eval import plots_curves
from steepest.eval import plots_differences
from steepest.eval import plots_loss
from steepest.eval import plots_pareto
from steepest.eval import plots_scores
from steepest.eval import plots_sensitivity
from steepest.eval import plots_training
from steepest.eval import plots_tuning
from steepest.eval import plots_widths
from steepest.eval.comparison import Comparison


def figures(
  comparison: Comparison, transfer: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
  """Returns id -> {'data', 'layout', …} of those that there are data for.

  Args:
    comparison: what to draw.
    transfer: of transfer.analyse.
  """
  drawn = {
    'loss': plots_loss.loss_figure(comparison),
    'pareto': plots_pareto.pareto_figure(comparison),
    'differences': plots_differences.difference_figure(comparison),
    'effects': plots_differences.effect_figure(comparison),
    'sensitivity': plots_sensitivity.sensitivity_figure(comparison),
    'transfer': plots_widths.width_figure(transfer) if transfer else None,
    'score-curves': plots_curves.curve_figure(comparison),
    'lr': plots_tuning.lr_figure(comparison),
    'scores': plots_scores.score_figure(comparison),
    'training': plots_training.training_figure(comparison),
  }
  return {name: figure for name, figure in drawn.items() if figure is not None}
