"""`make docs`: write configs/schema.json and the README's config table from the typed config."""

import re
from pathlib import Path

from rfp.runtime.files import write_json, write_text
from rfp.train.config import schema, table

ROOT = Path(__file__).parent.parent
MARKS = "<!-- config table: made by `make docs` -->\n", "<!-- end of config table -->"


def main() -> None:
    write_json(ROOT / "configs" / "schema.json", schema())
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    between = re.compile(re.escape(MARKS[0]) + ".*?" + re.escape(MARKS[1]), re.DOTALL)
    write_text(readme, between.sub(lambda _: MARKS[0] + table() + MARKS[1], text))


if __name__ == "__main__":
    main()
