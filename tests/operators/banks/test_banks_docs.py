"""The examples in docs/banks.md run, one after the other, and what they say about themselves is true."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_examples_of_the_banks_page_run():
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", (DOCS / "banks.md").read_text(), re.DOTALL):
        exec(code, names)
    read, near, means = names["read"], names["near"], names["means"]
    assert read.rows["feature"].shape == (2, 5, 256)
    assert read.valid_BK.tolist() == [[True] * 5, [True, True, False, False, False]]
    assert near.values_BkV.shape == (8, 70, 2)
    assert means.shape == (512, 70, 2) and bool((means >= 0).all()) and bool((means <= 1).all())
