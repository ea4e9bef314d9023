"""`python -m mogao_jax` is the `mogao` command."""

import sys

from mogao_jax.cli.main import main

sys.exit(main())
