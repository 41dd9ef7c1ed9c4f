"""Methods for language models on the invented authors of TOFU, learnt by stories15M: what is forgotten, kept, and comes back.

    python recipes/experiments/tofu.py small          # 400 questions, 2 authors forgotten: about 10 minutes a seed, 2 a method
    python recipes/experiments/tofu.py forget01       # 3,920 questions, as often as TOFU's authors learn them: 40 minutes a model, 3 to 8 a method
    python recipes/experiments/tofu.py small --minutes 5

Models and results are kept in `~/.cache/hf_unlearn/benchmark-lm`, and a later call goes on from there. TOFU is read from
`~/.cache/hf_unlearn/tofu`, or from the Hub. It writes `results/tofu-NAME.json` when nothing is left to do.
"""

import argparse

from real_data import cache_folder, stories15m
from study import record

from hf_unlearn.commands.tofu_benchmark import Benchmark, Settings, usual
from hf_unlearn.commands.tofu_report import figures, table

RETAIN = {
    "forget01": 3_880,
    "forget05": 3_400,
    "forget10": 2_800,
}  # as many again as are forgotten are left for each side of unseen


def settings_of(name: str) -> Settings:
    shared = {"model": str(stories15m()), "bf16": True, "max_new_tokens": 60}
    if name == "small":
        return Settings(**shared, epochs=8, asked=20)
    return Settings(**shared, forget=name, retain=RETAIN[name], epochs=5, asked=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="?", choices=("small", *RETAIN), default="small")
    parser.add_argument("--methods", nargs="+", default=usual())
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="begin no further model after so many")
    options = parser.parse_args()
    benchmark = Benchmark(cache_folder() / "benchmark-lm" / options.name, settings_of(options.name))
    left = benchmark.work(options.methods, options.seeds, options.minutes)
    found = {seed: figures(rows) for seed, rows in benchmark.rows.items()}
    print(table(found))
    if left:
        print(f"{left} models are left to do")
    else:
        settings = benchmark.about["settings"] | {"model": "stories15m"}
        record(f"tofu-{options.name}", {"settings": settings, "seeds": found})
