"""Claims of a paper and of articles about it, compared with the runs.

The paper trained models of 2.7 billion parameters on 22 tokens a parameter.
Runs a thousand times smaller can agree or disagree with it, never refute it:
every answer names the scale of the runs, their tokens per parameter and what
was tuned; an effect of opposite sign is 'opposite seen at this scale'.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

from steepest.report import findings, tables, words
from steepest.report.findings import (
  OPPOSITE,
  SEEN,
  UNRESOLVED,
  UNTESTED,
  Finding,
)

SOURCE = 'arXiv 2507.08472'

Test = Callable[[tables.Comparison], list[Finding]]

_BEST = functools.partial
# by ('abstract' or 'articles'), key, statement, test.
_CLAIMS: tuple[tuple[str, str, str, Test], ...] = (
  (
    'abstract',
    'same-range',
    'All three optimizers end in about the same range.',
    findings.same_range,
  ),
  (
    'abstract',
    'sophia-lowest-training-loss',
    'Sophia ends with the lowest training loss.',
    _BEST(findings.best, column='train_loss', optimizer='sophia'),
  ),
  (
    'abstract',
    'sophia-lowest-loss',
    'Sophia ends with the lowest validation loss.',
    _BEST(findings.best, column='eval_loss', optimizer='sophia'),
  ),
  (
    'abstract',
    'lion-fewest-hours',
    'Lion takes the fewest hours for the same tokens.',
    findings.fewest_hours,
  ),
  (
    'abstract',
    'adamw-best-downstream',
    'AdamW has the best benchmark scores, on average over them.',
    _BEST(findings.best, column='accuracy', optimizer='adamw'),
  ),
  (
    'articles',
    'sophia-most-in-multi-epoch-gpt',
    'Sophia’s lead is largest where GPT reads its data several times.',
    findings.multi_epoch_lead,
  ),
  (
    'articles',
    'llama-with-lion',
    'LLaMA does best with Lion.',
    _BEST(
      findings.best, column='eval_loss', optimizer='lion', architecture='llama'
    ),
  ),
  (
    'articles',
    'llama-twice-the-rate',
    'LLaMA’s best learning rate is about twice GPT-2’s.',
    findings.twice_the_rate,
  ),
  (
    'articles',
    'rates-transfer',
    'Learning rates found on narrow models hold for wide ones under µP.',
    findings.rates_transfer,
  ),
)
_RULES = (
  f'“{words.capitalized(SEEN)}”: the difference exceeds what the spread over '
  'seeds allows, corrected for the number of comparisons (Holm 1979). '
  f'“{words.capitalized(OPPOSITE)}”: a difference of the opposite sign does. '
  f'“{words.capitalized(UNRESOLVED)}”: neither does, or the runs were not '
  'comparable; this does not show that there is no difference. None of this '
  'says what happens at another scale.',
  'Claims of “about the same” are tested for equivalence: the 95 % interval '
  'must lie within a band. The band is, for losses, '
  f'{100 * findings.SAME_RANGE:.0f} % of the lowest, '
  'for “about twice” {:.2f} to {:.2f} times, '.format(*findings.ABOUT_TWICE)
  + 'and for learning rates that hold, a factor of two either way. The '
  'opposite is seen if the whole interval lies outside the band.',
  'Each interval is for one comparison alone; p-values are corrected within a '
  'group, not for the number of groups or claims.',
)


@dataclasses.dataclass(frozen=True)
class Answer:
  """A claim and what was found.

  Attributes:
    by: 'abstract' or 'articles'.
    key: of the claim.
    statement: what is claimed.
    findings: what the conclusion rests on.
  """

  by: str
  key: str
  statement: str
  findings: Sequence[Finding]

  @property
  def conclusion(self) -> str:
    """One conclusion of all findings: 'mixed' where they disagree."""
    tested = {f.conclusion for f in self.findings} - {UNTESTED}
    if {SEEN, OPPOSITE} <= tested:
      return 'mixed'
    for conclusion in (OPPOSITE, SEEN):
      if conclusion in tested:
        return conclusion if len(tested) == 1 else f'{conclusion}, in part'
    return UNRESOLVED if tested else UNTESTED

  @property
  def scale(self) -> str:
    """The scale of the findings that the conclusion rests on."""
    told = [f for f in self.findings if f.conclusion in (SEEN, OPPOSITE)]
    told = told or [f for f in self.findings if f.size]
    parts = ([f.size for f in told], [f.tuned for f in told])
    return ', '.join('; '.join(dict.fromkeys(of)) for of in parts if of)


def answers(comparison: tables.Comparison) -> list[Answer]:
  """Tests every claim; those without runs are 'not tested'."""
  return [
    Answer(by, key, statement, test(comparison))
    for by, key, statement, test in _CLAIMS
  ]


def markdown(comparison: tables.Comparison) -> str:
  """Returns claims.md."""
  return words.render(
    'claims.md.j2',
    source=SOURCE,
    answers=answers(comparison),
    groups=[findings.described(comparison, g) for g in comparison.groups],
    rules=_RULES,
  )
