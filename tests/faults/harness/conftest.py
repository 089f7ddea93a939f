"""The harness of faults needs the limits, signals and folders of Linux."""

import sys

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*"]
