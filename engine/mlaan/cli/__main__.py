"""`python -m mlaan.cli`, the same as `mlaan`."""

import sys

from mlaan.cli import main

sys.exit(main())
