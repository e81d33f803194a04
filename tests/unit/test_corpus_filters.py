"""Filters on the table: what matches, what missing values do, and what is refused."""

from __future__ import annotations

import pandas as pd
import pytest

from nnunet_ssl.corpus.filters import check_expression, matching, select
from nnunet_ssl.corpus.table import typed
from nnunet_ssl.errors import CorpusError

TABLE = typed(
    pd.DataFrame(
        {
            "case": ["a", "b", "c", "d"],
            "modality": ["T1w", "T2w", None, "FLAIR"],
            "iqs": [1.0, 3.0, 2.0, None],
            "depth": [40, 20, 32, None],
            "dataset": ["x", "x", "y", "y"],
            "contrast": [True, False, None, True],
        }
    )
)


@pytest.mark.parametrize(
    ("expression", "cases"),
    [
        ('modality in ("T1w", "T2w") and iqs <= 2.5 and depth >= 32', "a"),
        ('modality == "T1w"', "a"),
        ('modality != "T1w"', "bd"),
        ('not modality == "T1w"', "bd"),
        ('modality not in ["T1w"]', "bd"),
        ('not (modality == "T1w" or iqs > 2.5)', ""),
        ('modality == "FLAIR" or iqs > 2.5', "bd"),
        ("missing(iqs)", "d"),
        ("iqs <= 2.5 or missing(iqs)", "acd"),
        ("not missing(modality)", "abd"),
        ("1 < iqs <= 3", "bc"),
        ("iqs * 2 - 1 == 3", "c"),
        ("depth / 10 + 0.5 > 3", "ac"),
        ("-iqs < -1.5", "bc"),
        ("abs(iqs - 2) == 1", "ab"),
        ("depth % 20 == 0", "ab"),
        ('startswith(modality, "T")', "ab"),
        ('endswith(modality, "w") and not contains(modality, "2")', "a"),
        ('matches(lower(modality), "^(t1|flair)")', "ad"),
        ("contrast", "ad"),
        ("not contrast", "b"),
        ("contrast == True", "ad"),
        ("depth > iqs", "abc"),
        ("True", "abcd"),
        ("1 == 2", ""),
        ('session == "1"', ""),
        ('startswith(session, "1")', ""),
        ('  dataset == "y"\n', "cd"),
    ],
)
def test_what_matches(expression, cases):
    assert "".join(select(TABLE, expression)) == cases
    assert matching(TABLE, expression).dtype == bool


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("modalty == 'T1w'", "Did you mean modality"),
        ("modality == T1w", 'A text needs quotes: "T1w"|There are: case, path'),
        ("modality = 'T1w'", "cannot be read"),
        ("", "cannot be read"),
        ("modality", "compare it"),
        ("iqs", "compare it"),
        ("modality > 3", "compares text with number"),
        ("iqs == '3'", "compares number with text"),
        ("iqs in (1, 'a')", "compares number with number and text"),
        ("'T' in modality", "contains()"),
        ("iqs in 3", "contains()"),
        ("modality is None", "missing"),
        ("modality + 'x' == 'y'", "no number"),
        ("iqs / 0 > 1", "divides by zero"),
        ("iqs ** 9 > 1", "do not allow"),
        ("case.str.len() > 1", "calls case.str.len"),
        ("case.values", "do not allow"),
        ("__import__('os').system('true')", "calls"),
        ("().__class__", "do not allow"),
        ("[x for x in case]", "do not allow"),
        ("(lambda: 1)()", "calls"),
        ("open('x')", "calls open"),
        ("startswith(modality)", "2|expected 2"),
        ("startswith(modality, 3)", "expected a text"),
        ("startswith(iqs, 'a')", "no text"),
        ("matches(modality, '(')", "no regular expression"),
        ("iqs == None", "do not allow"),
        ("f'{iqs}' == 'a'", "do not allow"),
        ("iqs == (1, 2)", "use `in`"),
        ("not " * 3000 + "contrast", "cannot be read|nested too deeply"),
    ],
)
def test_what_is_refused(expression, message):
    with pytest.raises(CorpusError, match=message):
        matching(TABLE, expression)


def test_an_expression_can_be_checked_before_there_are_rows():
    check_expression(TABLE, "iqs < 3")
    with pytest.raises(CorpusError, match="Did you mean"):
        check_expression(TABLE, "iq < 3")
