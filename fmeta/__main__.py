"""`python -m fmeta` is the command line."""

import sys

from fmeta.cli import main

sys.exit(main())
