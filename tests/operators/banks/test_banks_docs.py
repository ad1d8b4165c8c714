"""The example in docs/banks.md runs, and what it says about itself is true."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_example_of_the_banks_page_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "banks.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    read = names["read"]
    assert read.rows["feature"].shape == (2, 5, 256)
    assert read.valid_BK.tolist() == [[True] * 5, [True, True, False, False, False]]
