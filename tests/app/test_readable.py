"""What a map says of each of its patches."""

from __future__ import annotations

import re

import numpy as np

from app.readable import readable, script


def test_values_stand_row_by_row_with_the_tokens_they_share() -> None:
    values = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    groups = np.array([[0, 1, 1], [2, 1, 3]])
    shown = readable("<img>", values, lambda v: f"{v:.0f}×", name="a <b>", groups=groups)
    assert 'data-values="1×|2×|3×|4×|5×|6×"' in shown
    assert 'data-columns="3" data-rows="2"' in shown
    assert 'data-tokens="0,1,1,2,1,3" data-sizes="1,3,3,1,3,1"' in shown
    assert "a &lt;b&gt;" in shown
    assert "data-tokens" not in readable("<img>", values, str, name="a")


def test_script_holds_its_words_and_asks_nobody() -> None:
    said = script()
    assert "NB_WORDS" not in said
    assert "row {row}, column {column}" in said
    assert not re.search(r"https?:|fetch\(|import\(", said)
