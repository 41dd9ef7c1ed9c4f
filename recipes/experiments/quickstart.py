"""The quickstart's table, as the README shows it."""

import tempfile

from hf_unlearn.quickstart import main
from study import record

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        record("quickstart", main(folder))
