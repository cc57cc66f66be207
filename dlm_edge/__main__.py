"""`python -m dlm_edge` is `dlm-edge`."""

from dlm_edge.cli import main

raise SystemExit(main())
