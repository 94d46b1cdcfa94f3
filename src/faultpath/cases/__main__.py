"""``docs/cases.md``: ``python -m faultpath.cases > docs/cases.md``."""

from __future__ import annotations

from faultpath.cases import run

if __name__ == "__main__":
    print(run.markdown(run.check_cases()), end="")
