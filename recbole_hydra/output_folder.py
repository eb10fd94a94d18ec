"""A folder that belongs to one job, with a json file in it that says to which."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole_hydra.errors import RecBoleHydraError


class OutputFolder:
    """The output folder of a kind of job.

    Args:
        kind: what such a job is called, ``"comparison"``.
        file: the name of its json file, which holds the job's identity: all that makes two jobs
            the same.
        error: the class of the errors raised.
        describe: takes an identity, returns it in a few words.
        difference: takes two identities and the keys they differ in, returns what differs.
    """

    def __init__(
        self,
        kind: str,
        file: str,
        error: type[RecBoleHydraError],
        describe: Callable[[dict[str, Any]], str],
        difference: Callable[[dict[str, Any], dict[str, Any], list[str]], str],
    ) -> None:
        self.kind, self.file, self.error = kind, file, error
        self.describe, self.difference = describe, difference

    def claim(self, folder: str | os.PathLike[str], identity: dict[str, Any], resume: bool) -> None:
        """Make ``folder`` this job's.

        Raises:
            RecBoleHydraError: as :meth:`check`, or the folder cannot be written.
        """
        self.check(folder, identity, resume)
        if resume:
            return
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_json(Path(folder) / self.file, identity)
        except OSError as error:
            raise self.error(
                f"output_dir {folder}: cannot be written ({error.strerror}); choose another"
            ) from error

    def check(self, folder: str | os.PathLike[str], identity: dict[str, Any], resume: bool) -> None:
        """Find out whether the job may have ``folder``; nothing is written.

        Raises:
            RecBoleHydraError: of the class ``error``: it holds another job, other files, or results
                of this one without ``resume``; or there is nothing to resume.
        """
        folder = Path(folder)
        if (folder / self.file).is_file():
            other = self.read(folder)
            different = [key for key in identity if identity[key] != other.get(key)]
            if different:
                raise self.error(
                    f"output_dir {folder}: holds another {self.kind} ({self.describe(other)}), "
                    f"which differs in {self.difference(identity, other, different)}; choose "
                    "another folder"
                )
            if not resume:
                raise self.error(
                    f"output_dir {folder}: holds results of this {self.kind}; continue it with "
                    "--resume=True, or choose another folder"
                )
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise self.error(
                f"output_dir {folder}: holds files that are no {self.kind}'s; choose an empty or a "
                "new folder"
            )
        if resume:
            raise self.error(f"output_dir {folder}: there is no {self.kind} to resume")

    def read(self, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Read the identity of the job that ``folder`` belongs to.

        Raises:
            RecBoleHydraError: of the class ``error``: there is none, or it is damaged.
        """
        try:
            return json.loads((Path(folder) / self.file).read_text(encoding="utf-8"))
        except OSError as error:
            raise self.error(f"{folder}: holds no {self.kind} ({error.strerror})") from error
        except ValueError as error:
            raise self.error(f"{folder}/{self.file}: damaged ({error})") from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: str | os.PathLike[str]) -> Any:
    """What :func:`write_json` wrote, or None where there is no such file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
