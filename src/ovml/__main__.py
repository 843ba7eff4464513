"""`python -m ovml` is `ovml`."""

import sys

from ovml.cli.main import main

sys.exit(main())
