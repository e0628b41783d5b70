"""Formatting of names and numbers."""

import io

import pytest
from rich.console import Console

from steepest.report import words

_NAN = float('nan')


@pytest.mark.parametrize(
  ('written', 'expected'),
  [
    (words.count(950), '950'),
    (words.count(124.4e6), '124.4 M'),
    (words.count(2.7e9), '2.70 B'),
    (words.duration(85.31), '85.3 s'),
    (words.duration(745), '12.42 min'),
    (words.duration(12_312), '3.42 h'),
    (words.scientific(2.934e15), '2.93 × 10¹⁵'),
    (words.scientific(0.0), '0'),
    (words.rate(3e-5), '3e-05'),
    (words.rate(None), '–'),
    (words.p_value(0.0123), '0.012'),
    (words.p_value(1e-7), '< 0.0001'),
    (words.interval(-0.123, 0.5, '+.2f'), '−0.12 to +0.50'),
    (words.interval(_NAN, 0.5, '+.2f'), '–'),
    (words.join([]), ''),
    (words.join(['a', 'b']), 'a and b'),
    (words.join(['a', 'b', 'c'], 'or'), 'a, b or c'),
    (words.plural(1, 'seed'), '1 seed'),
    (words.plural(3, 'seed'), '3 seeds'),
    (words.head('eval_loss'), 'Validation loss'),
    (words.head('arc_easy/acc_norm'), 'ARC-Easy acc_norm'),
    (words.head('mine/acc'), 'Mine acc'),
    (words.named('adamw beside gpt2'), 'AdamW beside GPT-2'),
  ],
)
def test_spelling(written, expected):
  assert written.replace('\u00a0', ' ') == expected


def test_a_column_has_one_unit():
  unit = words.unit('seconds', [45.2, 300.0, _NAN, None])
  assert unit.label == 'min'
  assert [unit.number(x) for x in (45.2, 300.0, None)] == ['0.75', '5.00', '–']
  assert unit.difference(-30.0) == '−0.50\u00a0min'


@pytest.mark.parametrize(
  ('key', 'value', 'shown', 'change'),
  [
    ('eval_loss', 4.98765, '4.9877', '+4.9877 nats'),
    ('accuracy', 0.2512, '25.1 %', '+25.1 points'),
    ('piqa/acc', 0.5, '50.0 %', '+50.0 points'),
    ('wiki/perplexity', 31.24, '31.2', '+31.2'),
    ('tokens_per_second', 5640.3, '5,640', '+5,640 tokens/s'),
    ('parameters', 1_088_256, '1.09 M', '+1.09 M'),
  ],
)
def test_units(key, value, shown, change):
  unit = words.unit(key, [value])
  texts = (unit.text(value), unit.difference(value))
  assert tuple(t.replace('\u00a0', ' ') for t in texts) == (shown, change)


def test_a_wide_table_is_printed_in_pieces_that_fit():
  stream = io.StringIO()
  heads = ['Optimizer', *(f'Benchmark {i}' for i in range(12))]
  rows = [['[red]AdamW', *(f'{i}.5 ± 0.5' for i in range(12))]]
  words.print_table(Console(file=stream, width=60), heads, rows)
  lines = stream.getvalue().split('\n')
  assert max(map(len, lines)) <= 60
  assert sum('[red]AdamW' in line for line in lines) > 1
  for i in range(12):
    assert f'{i}.5 ± 0.5' in stream.getvalue()


def test_markdown_text_cannot_leave_its_cell():
  assert words.markdown('a|b\n*c* <i>') == r'a\|b \*c\* &lt;i&gt;'
