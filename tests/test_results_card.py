"""The excerpt of a model card: the sections that a reader of results needs, as tables and lists, and nothing as markup."""

from pipeline.results.card import excerpt

CARD = """# x-ray: A, B

**Not a medical device.**

## Model

- architecture: resnet18

## Intended use

- modalities: CR, DX
- view positions: any

## Figures

On the test split, in `brackets` <i>95 %</i> intervals.

| label | AUROC |
|---|---|
| a \\| b | 0.91 (0.88 to 0.94) |

## Origin

- commit: abc
"""


def test_it_has_the_sections_that_speak_of_use_and_figures() -> None:
    text = "".join(excerpt(CARD))
    assert "<h3>Intended use</h3><ul><li>modalities: CR, DX</li><li>view positions: any</li></ul>" in text
    assert "resnet18" not in text
    assert "abc" not in text


def test_tables_become_tables_and_nothing_becomes_markup() -> None:
    text = "".join(excerpt(CARD))
    assert "<td>a | b</td><td>0.91 (0.88 to 0.94)</td>" in text
    assert "in brackets &lt;i&gt;95 %&lt;/i&gt; intervals." in text


def test_a_card_without_these_sections_gives_nothing() -> None:
    assert list(excerpt("# Tiny model\n")) == []
