"""A store in an S3 bucket, or an S3-compatible store with conditional writes."""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cached_property
from itertools import chain, count
from typing import TYPE_CHECKING, Any, BinaryIO

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from mlip_job.errors import (
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
)
from mlip_job.runtime.environment import require_one_line
from mlip_job.store.base import ObjectInfo, check_conditions, no_meter, save
from mlip_job.store.keys import check_key
from mlip_job.store.parts import part_size, several_at_once
from mlip_job.store.s3_errors import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlip_job.config.job import StorageConfig
    from mlip_job.store.base import Meter

_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_BLOCK = 1 << 20
_MIB = 1 << 20
_CONFLICT_TRIES = 6
_CONNECT_TIMEOUT_SECONDS = 10
_READ_TIMEOUT_SECONDS = 60
_MISSING = {"NoSuchKey", "404", "NotFound"}
_PRECONDITION_FAILED = 412
_CONFLICT = 409


class S3Store:
    """Objects in a bucket, below the prefix of ``storage.url``.

    Create-only writes send ``If-None-Match: *``, compare-and-swap sends ``If-Match``. A refused
    write is read back, and has succeeded if the content is the same: botocore may have sent it
    twice.

    Parameters
    ----------
    config
        Bucket, endpoint, checksums. Credentials come from the environment, a profile or the
        instance, as boto3 finds them.
    meter
        Receives the progress of uploads and downloads.
    """

    def __init__(self, config: StorageConfig, meter: Meter = no_meter) -> None:
        self._config = config
        self._meter = meter
        bucket, _, prefix = config.url.removeprefix("s3://").partition("/")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._threshold = config.multipart_threshold_mib * _MIB

    @property
    def url(self) -> str:
        """``s3://bucket/prefix``."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        return self.get_versioned(key)[0]

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """See `ObjectStore.get_versioned`; the version is the ETag."""
        with self._errors("read", key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
            data: bytes = answer["Body"].read()
            return data, answer["ETag"]

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`."""
        try:
            with self._errors("read", key):
                answer = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        except ObjectNotFoundError:
            return None
        return ObjectInfo(
            key, answer["ContentLength"], answer["ETag"], answer["LastModified"].timestamp()
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        for page in self._pages(prefix):
            for found in page.get("Contents", ()):
                key = found["Key"].removeprefix(self._prefix)
                modified = found["LastModified"].timestamp()
                yield ObjectInfo(key, found["Size"], found["ETag"], modified)

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        """See `ObjectStore.list_prefixes`."""
        start = len(self._prefix) + len(prefix.rpartition("/")[0]) + ("/" in prefix)
        for page in self._pages(prefix, Delimiter="/"):
            for found in page.get("CommonPrefixes", ()):
                yield found["Prefix"][start:].rstrip("/")

    def list_named(self, prefix: str, name: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list_named`."""
        for info in self.list(prefix):
            if info.key.removeprefix(prefix).partition("/")[2] == name:
                yield info

    def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put`."""
        self._put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put_if_absent`."""
        try:
            self._put(key, data, IfNoneMatch="*")
        except ObjectExistsError:
            if self.get(key) != data:
                raise

    def put_if_match(self, key: str, data: bytes, version: str) -> None:
        """See `ObjectStore.put_if_match`."""
        try:
            self._put(key, data, IfMatch=version)
        except (ObjectExistsError, ObjectNotFoundError):
            with suppress(ObjectNotFoundError):
                if self.get(key) == data:
                    return
            raise ObjectChangedError(f"{key} was changed by someone else") from None

    def upload(self, path: Path, key: str, *, if_absent: bool = False) -> str:
        """See `ObjectStore.upload`; large files go in parts, several at once."""
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        digest = hashlib.sha256()
        total = path.stat().st_size
        with path.open("rb") as file:
            try:
                if total < self._threshold:
                    data = file.read()
                    digest.update(data)
                    self._put(key, data, **condition)
                    self._meter(key, total, total)
                else:
                    self._upload_parts(key, file, total, digest.update, condition)
            except ObjectExistsError:
                if self._sha256(key) != digest.hexdigest():
                    raise
        return digest.hexdigest()

    def download(self, key: str, path: Path) -> str:
        """See `ObjectStore.download`."""
        return save(self._blocks(key), path)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
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
        """See `ObjectStore.remove_leftover`."""
        key, _, upload = name.partition("?uploadId=")
        with suppress(ObjectNotFoundError), self._errors("delete", key):
            self._client.abort_multipart_upload(
                Bucket=self._bucket, Key=self._key(key), UploadId=upload
            )

    def check(self) -> None:
        """See `ObjectStore.check`."""
        check_conditions(self)

    @cached_property
    def _region(self) -> str:
        return self._config.region or boto3.session.Session().region_name or "us-east-1"

    @cached_property
    def _client(self) -> Any:
        config = self._config
        require_one_line(*_CREDENTIALS)
        own_endpoint = config.endpoint_url is not None
        style = config.addressing_style
        if style == "auto" and own_endpoint:
            style = "path"  # bucket names as host names need DNS that few such stores have
        return boto3.session.Session().client(
            "s3",
            endpoint_url=config.endpoint_url,
            region_name=self._region,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 3},
                connect_timeout=_CONNECT_TIMEOUT_SECONDS,
                read_timeout=_READ_TIMEOUT_SECONDS,
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
        self._conditionally(
            key,
            lambda: self._client.put_object(
                Bucket=self._bucket, Key=self._key(key), Body=data, **condition
            ),
        )

    def _conditionally(self, key: str, write: Callable[[], object]) -> None:
        """Send a conditional write; retry it on a conflict (409)."""
        for attempt in range(_CONFLICT_TRIES):
            try:
                with self._errors("write", key):
                    write()
            except _ConcurrentWriteError:
                if attempt == _CONFLICT_TRIES - 1:
                    raise
                time.sleep(0.05 * 2**attempt)
            else:
                return

    def _upload_parts(
        self,
        key: str,
        file: BinaryIO,
        total: int,
        update: Callable[[bytes], object],
        condition: dict[str, str],
    ) -> None:
        target = {"Bucket": self._bucket, "Key": self._key(key)}
        size = part_size(total, self._threshold)

        def parts() -> Iterator[tuple[int, bytes]]:
            for number in count(1):
                data = file.read(size)
                if not data:
                    return
                update(data)
                yield number, data

        def send(part: tuple[int, bytes]) -> dict[str, object]:
            number, data = part
            with self._errors("write", key):
                answer = self._client.upload_part(PartNumber=number, Body=data, **target)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        with self._errors("write", key):
            target["UploadId"] = self._client.create_multipart_upload(**target)["UploadId"]
        try:
            sent: list[dict[str, object]] = []
            for part in several_at_once(send, parts()):
                sent.append(part)
                self._meter(key, min(len(sent) * size, total), total)
            self._conditionally(
                key,
                lambda: self._client.complete_multipart_upload(
                    MultipartUpload={"Parts": sent}, **target, **condition
                ),
            )
        except BaseException:
            # Parts of an upload that isn't completed are billed until it is aborted.
            with suppress(StoreError), self._errors("write", key):
                self._client.abort_multipart_upload(**target)
            raise

    def _blocks(self, key: str) -> Iterator[bytes]:
        """Yield an object's bytes; the rest of a large one in parts, several at once."""
        with self._errors("read", key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
            total, body, done = answer["ContentLength"], answer["Body"], 0
            parts: Iterator[bytes] = body.iter_chunks(_BLOCK)
            if total >= self._threshold:
                size = part_size(total, self._threshold)
                parts = chain(
                    [body.read(size)],
                    self._ranges(key, answer["ETag"], range(size, total, size), total),
                )
            for block in parts:
                done += len(block)
                self._meter(key, done, total)
                yield block
            body.close()
        if done != total:
            raise StoreError(f"{key} from {self.url} was cut short", transient=True)

    def _ranges(self, key: str, version: str, starts: range, total: int) -> Iterator[bytes]:
        """Yield the parts of one version of an object that begin at these bytes."""

        def fetch(start: int) -> bytes:
            end = min(start + starts.step, total)
            try:
                with self._errors("read", key):
                    answer = self._client.get_object(
                        Bucket=self._bucket,
                        Key=self._key(key),
                        Range=f"bytes={start}-{end - 1}",
                        IfMatch=version,
                    )
                    data: bytes = answer["Body"].read()
            except ObjectExistsError:  # the answer to a condition that is not met
                raise StoreError(f"{key} was changed while it was read", transient=True) from None
            if len(data) != end - start:
                raise StoreError(f"{key} from {self.url} was cut short", transient=True)
            return data

        return several_at_once(fetch, starts)

    def _sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        for block in self._blocks(key):
            digest.update(block)
        return digest.hexdigest()

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
            raise explain(error, action, key, self._config, self._region) from None
        except (BotoCoreError, HTTPError) as error:
            raise explain(error, action, key, self._config, self._region) from None


class _ConcurrentWriteError(StoreError):
    """The store saw another write of the same key at the same time (409)."""
