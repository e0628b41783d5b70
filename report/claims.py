"""What a paper and articles about it claim, beside what the runs show.

The paper trained models of 2.7 billion parameters on 22 tokens a parameter.
Runs a thousand times smaller can agree or disagree with it, never refute it:
every answer names the scale of the runs, their tokens per parameter and what
was tuned, and an effect of the other sign is 'opposite seen at this scale'.
"""

from collections.abc import Callable, Sequence
import dataclasses

from steepest.report import findings, rates, tables, words
from steepest.report.findings import (
  OPPOSITE,
  SEEN,
  UNRESOLVED,
  UNTESTED,
  Finding,
)

SOURCE = 'arXiv 2507.08472'

Test = Callable[[tables.Comparison], list[Finding]]


@dataclasses.dataclass(frozen=True)
class Claim:
  """A claim and how it is tested."""

  key: str
  statement: str
  test: Test


@dataclasses.dataclass(frozen=True)
class Answer:
  """A claim and what was found.

  Attributes:
    claim: what is claimed.
    by: 'abstract' or 'articles'.
    findings: what the conclusion rests on.
  """

  claim: Claim
  by: str
  findings: Sequence[Finding]

  @property
  def conclusion(self) -> str:
    """One conclusion of all findings: 'mixed' where they disagree."""
    tested = {f.conclusion for f in self.findings} - {UNTESTED}
    if not tested:
      return UNTESTED
    if {SEEN, OPPOSITE} <= tested:
      return 'mixed'
    for conclusion in (OPPOSITE, SEEN):
      if conclusion in tested:
        return conclusion if len(tested) == 1 else f'{conclusion}, in part'
    return UNRESOLVED

  @property
  def scale(self) -> str:
    """The scale of the findings that the conclusion rests on."""
    told = [f for f in self.findings if f.conclusion in (SEEN, OPPOSITE)]
    told = told or [f for f in self.findings if f.size]
    parts = ([f.size for f in told], [f.tuned for f in told])
    return ', '.join(
      '; '.join(dict.fromkeys(texts)) for texts in parts if texts
    )


def answers(comparison: tables.Comparison) -> list[Answer]:
  """Tests every claim; what the runs lack is 'not tested'."""
  return [
    Answer(claim, by, claim.test(comparison))
    for by, claims in (('abstract', _ABSTRACT), ('articles', _ARTICLES))
    for claim in claims
  ]


def markdown(comparison: tables.Comparison) -> str:
  """Returns claims.md."""
  found = answers(comparison)
  return words.render(
    'claims.md.j2',
    source=SOURCE,
    answers=found,
    groups=[
      findings.described(comparison, group) for group in comparison.groups
    ],
    heads=[*_HEADS, 'scale'],
    rows={a.claim.key: [_row(f) for f in a.findings] for a in found},
    rules=_RULES,
  )


_ABSTRACT = (
  Claim(
    'same-range',
    'All three optimizers end in about the same range.',
    findings.same_range,
  ),
  Claim(
    'sophia-lowest-training-loss',
    'Sophia ends with the lowest training loss.',
    lambda comparison: findings.best(comparison, 'train_loss', 'sophia'),
  ),
  Claim(
    'sophia-lowest-loss',
    'Sophia ends with the lowest validation loss.',
    lambda comparison: findings.best(comparison, 'eval_loss', 'sophia'),
  ),
  Claim(
    'lion-fewest-hours',
    'Lion takes the fewest hours for the same tokens.',
    lambda comparison: findings.fewest_hours(comparison, 'lion'),
  ),
  Claim(
    'adamw-best-downstream',
    'AdamW has the best benchmark scores, on average over them.',
    lambda comparison: findings.best(comparison, 'accuracy', 'adamw'),
  ),
)
_ARTICLES = (
  Claim(
    'sophia-most-in-multi-epoch-gpt',
    'Sophia’s lead is largest where GPT reads its data several times.',
    findings.multi_epoch_lead,
  ),
  Claim(
    'lion-first-at-target',
    'Lion is the first at a given loss (AdamW’s final one).',
    findings.first_at_target,
  ),
  Claim(
    'epochs-help-downstream',
    'Reading a smaller corpus several times raises benchmark scores.',
    findings.epochs_and_scores,
  ),
  Claim(
    'llama-with-lion',
    'LLaMA does best with Lion.',
    lambda comparison: findings.best(
      comparison, 'eval_loss', 'lion', ('llama',)
    ),
  ),
  Claim(
    'llama-twice-the-rate',
    'LLaMA’s best learning rate is about twice GPT-2’s.',
    rates.twice_the_rate,
  ),
  Claim(
    'rates-transfer',
    'Learning rates found on narrow models hold for wide ones under µP.',
    rates.rates_transfer,
  ),
)


_HEADS = ['where', 'here', 'effect', '95 % interval', 'p', 'n', 'remark']
_RULES = (
  f'“{words.capitalized(SEEN)}”: the difference exceeds what the spread over '
  'seeds allows, corrected for the number of comparisons (Holm 1979). '
  f'“{words.capitalized(OPPOSITE)}”: the difference of the other sign does. '
  f'“{words.capitalized(UNRESOLVED)}”: neither does, or the runs were not '
  'comparable, which does not show that there is no difference. None of this '
  'says what happens at another scale.',
  'Claims of “about the same” are tested for equivalence: the 95 % interval '
  'has to lie within a band. For losses it is '
  f'{100 * findings.SAME_RANGE:.0f} % of the lowest, '
  'for “about twice” {:.2f} to {:.2f} times, '.format(*rates.ABOUT_TWICE)
  + 'for rates that hold, a factor of two either way. The opposite is seen '
  'where the interval lies outside the band altogether.',
  'Intervals are of each comparison alone; p-values are corrected within a '
  'group, not for the number of groups or claims.',
)


def _row(f: Finding) -> tuple[str, ...]:
  return (
    f.where,
    f.conclusion,
    f.effect or words.MISSING,
    f.interval or words.MISSING,
    words.p_value(f.p),
    str(f.n) if f.n else words.MISSING,
    f.remark,
    ', '.join(filter(None, (f.size, f.tuned))),
  )
