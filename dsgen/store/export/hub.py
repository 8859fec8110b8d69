"""Upload a finished export to a dataset repository of the Hugging Face hub.

Token and address are those of `huggingface_hub`: `HF_TOKEN` or what `hf auth login` saved, and `HF_ENDPOINT`. The token
is never shown. Files that the repository has already are not uploaded again, so the same upload continues one that
failed.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsgen.errors import DsgenError, InvalidValueError, MissingPackageError, is_system_error, reason_of
from dsgen.parallel.progress import shows_progress
from dsgen.secrets import note_secret
from dsgen.store.export.plan import CARD, EXPORT_JSON

_OPTION = "--push-to-hub"
_RULE = "OWNER/NAME, of letters, digits, -, _ and ."
_KIND = "dataset"
_OF_THE_HUB = (".gitattributes",)  # made with every repository
_LOG_IN = "run hf auth login, or set HF_TOKEN to a token that may write"
_AGAIN = "run the same command again, which continues"


class HubRepository:
    """A dataset repository, `OWNER/NAME`, to upload an export to.

    Raises `InvalidValueError` for a name that no repository can have, `MissingPackageError` without huggingface_hub,
    and `DsgenError` without a token. Nothing is sent yet.
    """

    def __init__(self, name: str, *, private: bool = True):
        api, get_token, check_name = _import_hub()
        try:
            check_name(name)
        except ValueError as error:
            raise InvalidValueError.expected(_OPTION, name, _RULE) from error
        if name.count("/") != 1:
            raise InvalidValueError.expected(_OPTION, name, _RULE)
        self.name, self.private = name, private
        token = get_token()
        if not token:
            raise DsgenError(_OPTION, "no token of the Hugging Face hub", _LOG_IN)
        note_secret(token)
        self._api = api(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None, token=token)

    @property
    def url(self) -> str:
        """The address of the repository."""
        return f"{self._api.endpoint}/datasets/{self.name}"

    def prepare(self, files: Iterable[str]) -> None:
        """Make the repository if there is none, so that all that can be refused is refused before an export is made.

        `files` are the names of the files of the export. Raises `InvalidValueError` for a repository that holds others,
        or that is private or public though the opposite is wanted, and `DsgenError` if the hub refuses or cannot be
        reached.
        """
        with self._errors():
            self._api.whoami()
            found = self._find()
            if found is not None:
                self._check(found, files)
            self._api.create_repo(self.name, repo_type=_KIND, private=self.private, exist_ok=True)

    def upload(self, out: Path) -> None:
        """Upload the export in a folder; files that are there already stay as they are."""
        with self._errors():
            self._api.upload_folder(
                repo_id=self.name,
                folder_path=out,
                repo_type=_KIND,
                allow_patterns=[CARD, EXPORT_JSON, "data/*.parquet"],
                commit_message="Upload with dsgen",
            )

    def _find(self) -> Any:
        """Return what the hub says of the repository; None if it does not exist, or the token may not see it."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return self._api.repo_info(self.name, repo_type=_KIND)
        except RepositoryNotFoundError:
            return None

    def _check(self, found: Any, files: Iterable[str]) -> None:
        known = {*_OF_THE_HUB, CARD, EXPORT_JSON, *files}
        others = sorted(file.rfilename for file in found.siblings or () if file.rfilename not in known)
        if others:
            reason = f"{self.url} holds other files ({', '.join(others[:5])})"
            raise InvalidValueError(_OPTION, reason, "choose another name, or delete them there")
        if bool(found.private) != self.private:
            reason = "is private, expected public, as --public says" if found.private else "is public, expected private"
            remedy = "leave out --public" if found.private else "add --public"
            raise InvalidValueError(_OPTION, f"{self.url} {reason}", f"{remedy}, or change it in its settings")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say in a line what the hub, the network or the library reports; without progress where none is wanted."""
        from huggingface_hub.utils import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
            logging,
        )

        hidden, verbosity = are_progress_bars_disabled(), logging.get_verbosity()
        logging.set_verbosity_error()
        if not shows_progress():
            disable_progress_bars()
        try:
            yield
        except DsgenError:
            raise
        except Exception as error:
            if is_system_error(error) and _answer(error) is None and not _is_of_network(error):
                raise
            raise self._explain(error) from error
        finally:
            logging.set_verbosity(verbosity)
            if not hidden:
                enable_progress_bars()

    def _explain(self, error: Exception) -> DsgenError:
        answer = _answer(error)
        if any(type(each).__name__ == "OfflineModeIsEnabled" for each in _chain(error)):
            return DsgenError("HF_HUB_OFFLINE", "keeps the hub from being asked", "unset it")
        if answer is None:
            if _is_of_network(error):
                remedy = f"check the network and HF_ENDPOINT, then {_AGAIN}"
                return DsgenError(self._api.endpoint, f"cannot be reached ({_reason(error)})", remedy)
            return DsgenError(self.url, f"the upload failed ({_reason(error)})", _AGAIN)
        code, told = answer
        reasons = {
            401: ("the hub does not accept the token", _LOG_IN),
            403: (
                "the token may not write there",
                "name a repository of your own account or organisation, or use a token that may write",
            ),
            404: ("not found, or the token may not see it", "check the name, and that the token may write"),
            429: ("too many requests", f"wait some minutes, then {_AGAIN}"),
        }
        reason, remedy = reasons.get(code, (f"the hub answers {code}", _AGAIN))
        return DsgenError(self.url, f"{reason} ({told})" if told else reason, remedy)


def _import_hub() -> tuple[Any, Any, Any]:
    """Return `HfApi`, `get_token` and `validate_repo_id`; raise `MissingPackageError` without huggingface_hub."""
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils import validate_repo_id
    except ImportError as error:
        raise MissingPackageError("huggingface_hub", "not installed", "pip install 'dsgen[hub]'") from error
    return HfApi, get_token, validate_repo_id


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _answer(error: Exception) -> tuple[int, str] | None:
    """Return the status that a server answered, and what it said about it; None if none did."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        code = getattr(response, "status_code", None)
        if isinstance(code, int):
            return code, _first_line(getattr(each, "server_message", None) or "")
    return None


def _is_of_network(error: Exception) -> bool:
    """Return whether no server answered; which library says so depends on the version of huggingface_hub."""
    libraries = ("httpx", "httpcore", "requests", "urllib3")
    return any(
        isinstance(each, ConnectionError | TimeoutError) or type(each).__module__.startswith(libraries)
        for each in _chain(error)
    )


def _reason(error: Exception) -> str:
    return _first_line(reason_of([*_chain(error)][-1]))


def _first_line(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip().partition("\n")[0]).rstrip(".")
