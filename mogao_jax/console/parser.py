"""Arguments that cannot be read end as all errors do: in one message, without the whole usage."""

from __future__ import annotations

import argparse
from typing import NoReturn

from mogao_jax.errors import RequestError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises a RequestError instead of leaving the program."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see `{self.prog} --help`.")
