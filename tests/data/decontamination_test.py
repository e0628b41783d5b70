"""Overlaps of 13 words against a search by hand."""

from hypothesis import given, strategies as st

from steepest.data import decontamination

_WORDS = st.lists(st.sampled_from('abcd'), max_size=60)


def _runs(words):
  return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}


@given(st.lists(_WORDS, max_size=4), st.lists(_WORDS, max_size=4))
def test_equals_a_search_by_hand(scored, documents):
  known = decontamination.Benchmarks(' '.join(w) for w in scored)
  repeated = known.repeated_in([' '.join(w) for w in documents])
  runs = set().union(*map(_runs, scored))
  assert repeated == [bool(_runs(w) & runs) for w in documents]


@given(_WORDS, st.lists(_WORDS, max_size=4))
def test_parts_of_a_document_repeat_what_the_whole_does(scored, parts):
  known = decontamination.Benchmarks([' '.join(scored)])
  whole = [word for part in parts for word in part]
  repeated = known.repeated_in_parts(' '.join(part) for part in parts)
  assert repeated == bool(_runs(whole) & _runs(scored))


def test_case_and_punctuation_do_not_hide_a_question():
  question = (
    'Which statement best explains why photosynthesis is the foundation of '
    'most food webs?'
  )
  known = decontamination.Benchmarks([question])
  hidden = f'Quiz. {question.upper().replace(" ", ", ")} Sunlight.'
  short = ' '.join(question.split()[:12])
  assert known.repeated_in([hidden, short, 'x', '']) == [
    True,
    False,
    False,
    False,
  ]
