"""`python -m hf_unlearn`: the command line without its script."""

import sys

from .commands import main

sys.exit(main())
