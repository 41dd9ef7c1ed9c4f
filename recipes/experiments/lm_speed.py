"""Memory and time of a step of methods for language models: `hf-unlearn benchmark --language-model`, recorded.

python recipes/experiments/lm_speed.py [npo "npo, LoRA" evaluation]

Of some sides, those are measured anew and the others kept; each row has the commit that measured it.
"""

import json
import sys

from study import RESULTS, commit, record

from hf_unlearn.commands import language_speed as language

NAME = "lm-speed"


def earlier() -> dict[str, dict]:
    """The rows that there are, by side."""
    path = RESULTS / f"{NAME}.json"
    if not path.exists():
        return {}
    about = json.loads(path.read_text())
    return {row["side"]: {"commit": about["commit"]} | row for row in about["results"]["rows"]}


if __name__ == "__main__":
    made_by, names = commit(), sys.argv[1:] or list(language.SIDES)
    for name in names:  # each is kept at once
        content = language.compare([name], language.VOCABULARY, language.TOKENS, steps=2)
        rows = earlier() | {row["side"]: row | {"commit": made_by} for row in content["rows"]}
        record(NAME, content | {"rows": [rows[side] for side in language.SIDES if side in rows]})
    print(language.report([rows[side] for side in language.SIDES if side in rows]))
