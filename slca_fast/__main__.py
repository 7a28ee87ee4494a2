"""``python -m slca_fast``."""

import sys

from slca_fast.cli import main

sys.exit(main())
