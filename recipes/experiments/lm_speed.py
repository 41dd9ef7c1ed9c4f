"""Memory and time of a step of methods for language models: `hf-unlearn benchmark --language-model`, recorded.

python recipes/experiments/lm_speed.py [npo "npo, LoRA" evaluation]
"""

import sys

from study import record

from hf_unlearn.commands import language_speed as language

if __name__ == "__main__":
    names = sys.argv[1:] or list(language.SIDES)
    content = language.compare(names, language.VOCABULARY, language.TOKENS, steps=2)
    print(language.report(content["rows"]))
    record("lm-speed", content)
