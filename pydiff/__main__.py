"""python -m pydiff: the same as the `pydiff` command."""

import sys

from pydiff.cli import main

sys.exit(main())
