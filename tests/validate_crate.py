"""Print what roc-validator finds in an RO-Crate, one "SEVERITY check message" a line.

Run by a test with the Python of roc-validator's own environment. The validator fetches the JSON-LD
context that a crate names; here it comes from a file, through the validator's cache and its offline
mode, so that no test needs the network.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from requests.adapters import HTTPAdapter
from requests_cache import CachedSession
from rocrate_validator.models import Severity
from rocrate_validator.services import ValidationSettings, validate
from urllib3 import HTTPResponse

CONTEXT = "https://w3id.org/ro/crate/1.3/context"


class _FromFile(HTTPAdapter):
    """Answers every request with the content of a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def send(self, request: Any, **_options: Any) -> Any:
        with self._path.open("rb") as file:
            answer = HTTPResponse(
                body=file,
                headers={"Content-Type": "application/ld+json"},
                status=200,
                preload_content=False,
                request_url=request.url,
            )
            response = self.build_response(request, answer)
            response.content  # noqa: B018 - read while the file is open
            return response


def main(crate: str, context: str, cache: str) -> None:
    """Validate."""
    with CachedSession(cache_name=cache, backend="sqlite", expire_after=-1) as session:
        session.mount(CONTEXT, _FromFile(Path(context)))
        session.get(CONTEXT)
    settings = ValidationSettings(
        rocrate_uri=crate,
        profile_identifier="ro-crate-1.3",
        requirement_severity=Severity.RECOMMENDED,
        offline=True,
        cache_path=cache,
    )
    for issue in validate(settings).get_issues():
        print(issue.severity.name, issue.check.identifier, issue.message)  # noqa: T201
    print("validated")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
