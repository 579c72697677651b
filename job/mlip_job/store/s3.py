"""A store in an S3 bucket, or an S3-compatible store with conditional writes."""

from __future__ import annotations

import hashlib
import time
from contextlib import closing, contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
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
from botocore.exceptions import ConnectionError as BotoConnectionError
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError, S3ValidationError
from urllib3.exceptions import HTTPError

from mlip_job.errors import (
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
)
from mlip_job.runtime.environment import require_one_line
from mlip_job.store.base import (
    CALLS_AT_ONCE,
    ObjectInfo,
    check_conditions,
    check_key,
    no_meter,
    whole_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlip_job.config.job import StorageConfig
    from mlip_job.store.base import Meter

_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_MIB = 1 << 20
_PART = 8 * _MIB  # larger objects move in parts, of which up to ten are held in memory
_MOST_PARTS = 10_000  # of an S3 object
_TRANSFERS_AT_ONCE = 4
_CONFLICT_TRIES = 6
_CONNECT_TIMEOUT_SECONDS = 10
_READ_TIMEOUT_SECONDS = 60

_MISSING = {"NoSuchKey", "404", "NotFound"}
_PRECONDITION_FAILED = 412
_CONFLICT = 409
_SERVER_ERROR = 500
# Transient errors of S3-compatible stores, in addition to every 5xx.
_TRANSIENT = {
    "BadDigest",
    "IncompleteBody",
    "NoSuchUpload",  # a completed multipart upload whose answer was lost: it is sent again
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
    "429",
}
_CHECK_CREDENTIALS = (
    "the credentials are not valid ({code})",
    "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
)
_OTHER_REGION = (
    "the store rejects requests that are signed for the region {region} ({code})",
    "set storage.region{wanted}",
)
_DENIED = (
    "access denied to {operation}",
    "the credentials need GetObject, PutObject, DeleteObject and ListBucket there",
)
# What is wrong, and what to do, by the code of an error.
_PROBLEMS = {
    "NoSuchBucket": (
        "the bucket {bucket} does not exist",
        "create it, or correct storage.url",
    ),
    "RequestTimeTooSkewed": (
        "this machine's clock differs too much from the store's",
        "set the clock (NTP)",
    ),
    "InvalidAccessKeyId": _CHECK_CREDENTIALS,
    "SignatureDoesNotMatch": _CHECK_CREDENTIALS,
    "ExpiredToken": _CHECK_CREDENTIALS,
    "InvalidToken": _CHECK_CREDENTIALS,
    "TokenRefreshRequired": _CHECK_CREDENTIALS,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "IllegalLocationConstraintException": _OTHER_REGION,
    "InvalidRegion": _OTHER_REGION,
    "PermanentRedirect": _OTHER_REGION,
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "Forbidden": _DENIED,
    "AllAccessDisabled": _DENIED,
}


class S3Store:
    """Objects in a bucket, below the prefix of ``storage.url``.

    Create-only writes send ``If-None-Match: *``, compare-and-swap sends ``If-Match``; versions are
    ETags. A refused write is read back, and has succeeded if the content is the same: botocore may
    have sent it twice. Large files move in parts, several at once. Credentials come from the
    environment, a profile or the instance, as boto3 finds them; `meter` receives the progress of
    uploads and downloads. For the methods, see `ObjectStore`.
    """

    def __init__(self, config: StorageConfig, meter: Meter = no_meter) -> None:
        self._config = config
        self._meter = meter
        self._bucket, _, prefix = config.url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    @property
    def url(self) -> str:
        """``s3://bucket/prefix``."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def get(self, key: str) -> bytes:
        return self.get_versioned(key)[0]

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        with self._errors("read", key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
            with closing(answer["Body"]) as body:
                return body.read(), answer["ETag"]

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with self._errors("read", key):
                answer = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        except ObjectNotFoundError:
            return None
        return ObjectInfo(key, answer["ContentLength"], answer["LastModified"].timestamp())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._pages(prefix):
            for found in page.get("Contents", ()):
                key = found["Key"].removeprefix(self._prefix)
                yield ObjectInfo(key, found["Size"], found["LastModified"].timestamp())

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        start = len(self._prefix) + len(prefix.rpartition("/")[0]) + ("/" in prefix)
        for page in self._pages(prefix, Delimiter="/"):
            for found in page.get("CommonPrefixes", ()):
                yield found["Prefix"][start:].rstrip("/")

    def put(self, key: str, data: bytes) -> None:
        self._put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> None:
        try:
            self._put(key, data, IfNoneMatch="*")
        except ObjectExistsError:
            if self.get(key) != data:
                raise

    def put_if_match(self, key: str, data: bytes, version: str) -> None:
        try:
            self._put(key, data, IfMatch=version)
        except (ObjectExistsError, ObjectNotFoundError):
            with suppress(ObjectNotFoundError):
                if self.get(key) == data:
                    return
            raise ObjectChangedError(f"{key} was changed by someone else") from None

    def upload(self, path: Path, key: str) -> str:
        total = path.stat().st_size
        with path.open("rb") as file:
            source = _HashedSource(file)
            if total < _PART:
                self._put(key, source.read())
            else:
                with self._errors("write", key):
                    self._client.upload_fileobj(
                        source, self._bucket, self._key(key), **self._in_parts(key, total)
                    )
        self._meter(key, total, total)
        return source.digest.hexdigest()

    def download(self, key: str, path: Path) -> str:
        with whole_file(path) as target, self._errors("read", key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
            total = answer["ContentLength"]
            # Most objects are small: one request. A large one is requested again, in parts.
            with closing(answer["Body"]) as body:
                if total < _PART:
                    target.write(body.read())
            if total >= _PART:
                self._client.download_fileobj(
                    self._bucket, self._key(key), target, **self._in_parts(key, total)
                )
        self._meter(key, total, total)
        return target.sha256()

    def delete(self, key: str) -> None:
        with self._errors("delete", key):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def leftovers(self, older_than_s: float) -> Iterator[str]:
        """See `ObjectStore.leftovers`: uploads in parts that were not completed."""
        with self._errors("list", ""):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            )
            for page in pages:
                # By the store's clock, as everywhere: this machine's may be wrong.
                now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
                for upload in page.get("Uploads", ()):
                    if (now - upload["Initiated"]).total_seconds() >= older_than_s:
                        key = upload["Key"].removeprefix(self._prefix)
                        yield f"{key}?uploadId={upload['UploadId']}"

    def remove_leftover(self, name: str) -> None:
        key, _, upload = name.partition("?uploadId=")
        with suppress(ObjectNotFoundError), self._errors("delete", key):
            self._client.abort_multipart_upload(
                Bucket=self._bucket, Key=self._key(key), UploadId=upload
            )

    def check(self) -> None:
        check_conditions(self)

    @cached_property
    def _region(self) -> str:
        return self._config.region or boto3.session.Session().region_name or "us-east-1"

    @cached_property
    def _client(self) -> Any:
        config = self._config
        require_one_line(*_CREDENTIALS)
        # Bucket names as host names need DNS that few stores other than Amazon's have.
        style = "auto" if config.endpoint_url is None else "path"
        return boto3.session.Session().client(
            "s3",
            endpoint_url=config.endpoint_url,
            region_name=self._region,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 3},
                connect_timeout=_CONNECT_TIMEOUT_SECONDS,
                read_timeout=_READ_TIMEOUT_SECONDS,
                max_pool_connections=CALLS_AT_ONCE,
                s3={"addressing_style": style},
            ),
        )

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _pages(self, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        with self._errors("list", prefix):
            paginator = self._client.get_paginator("list_objects_v2")
            yield from paginator.paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix, **options
            )

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        """Write an object; retry on a conflict (409), a concurrent write of the same key."""
        target = {"Bucket": self._bucket, "Key": self._key(key)}
        for attempt in range(_CONFLICT_TRIES):
            try:
                with self._errors("write", key):
                    self._client.put_object(Body=data, **target, **condition)
            except _ConcurrentWriteError:
                if attempt == _CONFLICT_TRIES - 1:
                    raise
                time.sleep(0.05 * 2**attempt)
            else:
                return

    def _in_parts(self, key: str, total: int) -> dict[str, Any]:
        """Return the options of a transfer in parts of one object."""
        part = max(_PART, -(-total // _MOST_PARTS))
        config = TransferConfig(
            multipart_threshold=_PART,
            multipart_chunksize=part,
            max_concurrency=_TRANSFERS_AT_ONCE,
            preferred_transfer_client="classic",
        )
        done, lock = 0, Lock()

        def count(size: int) -> None:
            nonlocal done
            with lock:
                done += size
                self._meter(key, done, total)

        return {"Config": config, "Callback": count}

    @contextmanager
    def _errors(self, action: str, key: str) -> Iterator[None]:
        """Turn boto3's errors into ours."""
        try:
            yield
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = error.response.get("Error", {}).get("Code", "")
            if status == _PRECONDITION_FAILED:
                raise ObjectExistsError(f"{key} exists in {self.url}") from None
            if status == _CONFLICT and action == "write":
                raise _ConcurrentWriteError(
                    f"can't write {key} to {self.url}: others keep writing it at the same time",
                    hint="run the same command again",
                    transient=True,
                ) from None
            if code in _MISSING:
                raise ObjectNotFoundError(f"{key} is not in {self.url}") from None
            raise self._explain_answer(error, action, key) from None
        except RetriesExceededError as error:
            raise self._explain(error.last_exception, action, key) from None
        except S3DownloadFailedError:
            raise StoreError(f"{key} was changed while it was read", transient=True) from None
        except (BotoCoreError, HTTPError, S3ValidationError) as error:
            raise self._explain(error, action, key) from None

    def _explain(self, error: Exception, action: str, key: str) -> StoreError:
        """Return our error for one that is no answer of the store."""
        tried = f"can't {action} {key} in {self._config.url}"
        where = self._config.endpoint_url or "AWS"
        name = type(error).__name__
        match error:
            case NoCredentialsError() | PartialCredentialsError():
                return StoreError(
                    f"{tried}: no credentials",
                    hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
                )
            # urllib3's: botocore lets it through if a connection breaks while it reads an answer.
            case BotoConnectionError() | HTTPClientError() | HTTPError() | OSError():
                return StoreError(
                    f"{tried}: {where} can't be reached ({name})",
                    hint="check storage.endpoint_url and the network",
                    transient=True,
                )
            case IncompleteReadError() | FlexibleChecksumError() | S3ValidationError():
                return StoreError(f"{tried}: damaged in transit", transient=True)
            case ParamValidationError():
                return StoreError(
                    f"{tried}: {self._bucket!r} is not a bucket name", hint="correct storage.url"
                )
        return StoreError(
            f"{tried}: unexpected response from {where} ({name}); is this an S3 endpoint?"
        )

    def _explain_answer(self, error: ClientError, action: str, key: str) -> StoreError:
        """Return our error for an error that the store answered with."""
        tried = f"can't {action} {key} in {self._config.url}"
        answer = error.response.get("Error", {})
        code = str(answer.get("Code", "unknown"))
        operation = error.operation_name
        if code in _PROBLEMS:
            region = answer.get("Region")
            problem, hint = (
                text.format(
                    bucket=self._bucket,
                    code=code,
                    operation=operation,
                    region=self._region,
                    wanted=f": {region}" if region else " to the store's",
                )
                for text in _PROBLEMS[code]
            )
            return StoreError(f"{tried}: {problem}", hint=hint)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return StoreError(
            f"{tried}: {code} from {operation}",
            transient=status >= _SERVER_ERROR or code in _TRANSIENT,
        )


class _HashedSource:
    """A file that is read from start to end, and hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        data = self._file.read(size)
        self.digest.update(data)
        return data


class _ConcurrentWriteError(StoreError):
    """The store saw another write of the same key at the same time (409)."""
