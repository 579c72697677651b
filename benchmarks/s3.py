"""S3 server for benchmarks: the one of the tests."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import boto3

from mlip_job.config import StorageConfig
from tests.servers.s3 import running_s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_storage(log: Path) -> Iterator[StorageConfig]:
    """Run a server with an empty bucket, and put its credentials into the environment."""
    with running_s3_server(log) as server:
        os.environ.update(_CREDENTIALS)
        client = boto3.client("s3", endpoint_url=server.endpoint_url, region_name="us-east-1")
        client.create_bucket(Bucket="bench")
        yield StorageConfig(url="s3://bench/store", endpoint_url=server.endpoint_url)
