"""`python -m ovml` is `ovml`."""

import sys

from ovml.cli import main

sys.exit(main())
