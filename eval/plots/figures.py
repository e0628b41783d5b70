"""All figures of the report, as Plotly figures in plain dicts."""

from typing import Any

from steepest.eval.comparing.comparison import Comparison
from steepest.eval.plots import (
  curves,
  differences,
  layers,
  loss,
  pareto,
  scores,
  sensitivity,
  training,
  tuning,
  widths,
)


def figures(
  comparison: Comparison, transfer: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
  """Returns id -> {'data', 'layout', …} of those that there are data for.

  Args:
    comparison: what to draw.
    transfer: of transfer.analyse.
  """
  drawn = {
    'loss': loss.loss_figure(comparison),
    'pareto': pareto.pareto_figure(comparison),
    'differences': differences.difference_figure(comparison),
    'effects': differences.effect_figure(comparison),
    'sensitivity': sensitivity.sensitivity_figure(comparison),
    'transfer': widths.width_figure(transfer) if transfer else None,
    'score-curves': curves.curve_figure(comparison),
    'lr': tuning.lr_figure(comparison),
    'scores': scores.score_figure(comparison),
    'training': training.training_figure(comparison),
    'layers': layers.layer_figure(comparison),
  }
  return {name: figure for name, figure in drawn.items() if figure is not None}
