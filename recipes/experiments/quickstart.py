"""The quickstart's table, as the README shows it."""

import tempfile

from study import record

from hf_unlearn.commands.demo import run

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        record("quickstart", run(folder))
