"""Explain boto3's errors to the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from urllib3.exceptions import HTTPError

from mlip_job.errors import StoreError

if TYPE_CHECKING:
    from mlip_job.config.job import StorageConfig

# Transient errors of S3-compatible stores, in addition to every 5xx.
_TRANSIENT = {
    "BadDigest",
    "IncompleteBody",
    "NoSuchUpload",  # a completed multipart upload whose answer was lost: the object is read back
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
    "429",
}
_SERVER_ERROR = 500
_OTHER_REGION = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidRegion",
    "PermanentRedirect",
}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled"}
_WRONG_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
}


def explain(
    error: ClientError | BotoCoreError | HTTPError,
    action: str,
    key: str,
    config: StorageConfig,
    region: str,
) -> StoreError:
    """Return our error for one of boto3's: what was tried, why it failed, what to do."""
    bucket = config.url.removeprefix("s3://").partition("/")[0]
    tried = f"can't {action} {key} in {config.url}"
    if isinstance(error, ClientError):
        return _explain_answer(error, tried, bucket, region)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreError(
            f"{tried}: no credentials",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    where = config.endpoint_url or "AWS"
    # urllib3's: botocore lets it through where a connection breaks while it reads an answer.
    if isinstance(error, BotoConnectionError | HTTPClientError | HTTPError):
        return StoreError(
            f"{tried}: {where} can't be reached ({type(error).__name__})",
            hint="check storage.endpoint_url and the network",
            transient=True,
        )
    if isinstance(error, IncompleteReadError | FlexibleChecksumError):
        return StoreError(f"{tried}: damaged in transit", transient=True)
    if isinstance(error, ParamValidationError):
        return StoreError(f"{tried}: {bucket!r} is not a bucket name", hint="correct storage.url")
    return StoreError(
        f"{tried}: unexpected response from {where} ({type(error).__name__}); "
        "is this an S3 endpoint?"
    )


def _explain_answer(error: ClientError, tried: str, bucket: str, region: str) -> StoreError:
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    if code == "NoSuchBucket":
        return StoreError(
            f"{tried}: the bucket {bucket} does not exist",
            hint="create it, or correct storage.url",
        )
    if code in _WRONG_CREDENTIALS:
        return StoreError(
            f"{tried}: the credentials are not valid ({code})",
            hint="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
        )
    if code in _OTHER_REGION:
        wanted = error.response.get("Error", {}).get("Region")
        return StoreError(
            f"{tried}: the store rejects requests that are signed for the region {region} ({code})",
            hint=f"set storage.region: {wanted}" if wanted else "set storage.region to the store's",
        )
    if code == "RequestTimeTooSkewed":
        return StoreError(
            f"{tried}: this machine's clock differs too much from the store's",
            hint="set the clock (NTP)",
        )
    if code in _DENIED:
        return StoreError(
            f"{tried}: access denied to {error.operation_name}",
            hint="the credentials need GetObject, PutObject, DeleteObject and ListBucket there",
        )
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return StoreError(
        f"{tried}: {code} from {error.operation_name}",
        transient=status >= _SERVER_ERROR or code in _TRANSIENT,
    )
