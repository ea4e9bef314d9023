"""Reading files out of archives that nobody has checked."""

from __future__ import annotations

import pathlib
import zipfile

from mogao_jax.errors import DataError
from mogao_jax.paths import expanded


class SafeZip:
    """A zip file whose members are read by name, never extracted, each under a size limit.

    Nothing is written to where an archive says, so its paths have no power; a member that
    unpacks to more than its header claims, or than is asked for, is refused.
    """

    def __init__(self, path: str | pathlib.Path, *, max_members: int = 100_000):
        """Raises DataError if it is missing, not a zip file, or has too many members."""
        self.path = expanded(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise DataError(f"nothing is at {str(self.path)!r}; check the path.") from None
        except (OSError, zipfile.BadZipFile) as e:
            raise DataError(f"{str(self.path)!r} is not a readable zip file ({e}).") from None
        if len(self._zip.infolist()) > max_members:
            raise DataError(f"{str(self.path)!r} has over {max_members} members.")

    def __enter__(self) -> SafeZip:
        return self

    def __exit__(self, *exc) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self._zip.NameToInfo

    def read(self, name: str, max_bytes: int) -> bytes:
        """Raises DataError if the member is missing, damaged, encrypted or too large."""
        place = f"member {name!r} of {str(self.path)!r}"
        try:
            with self._zip.open(name) as f:
                data = f.read(max_bytes + 1)
        except KeyError:
            raise DataError(f"{place} is missing.") from None
        except (OSError, RuntimeError, zipfile.BadZipFile, EOFError, NotImplementedError) as e:
            raise DataError(f"{place} cannot be read ({e}).") from None
        except Exception as e:  # noqa: BLE001  (zlib.error, lzma.LZMAError)
            raise DataError(f"{place} is damaged ({e}).") from None
        if len(data) > max_bytes:
            raise DataError(f"{place} has over {max_bytes} bytes.")
        return data
