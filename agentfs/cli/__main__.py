"""`python -m agentfs.cli`, for a source tree that is not installed."""

import sys

from agentfs.cli import main

sys.exit(main())
