"""A real S3 server on loopback."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLOSED_PORT = "http://127.0.0.1:9"
"""An endpoint where nobody answers."""


@dataclass(frozen=True)
class S3Server:
    """A real S3 server in a process of its own, on loopback. `client` is boto3's: it shares nothing with fsspec."""

    endpoint: str
    log: Path
    client: Any

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets, and nothing of what the machine's own user has set."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def requests(self) -> list[str]:
        """Every request since the server started, such as "GET /bucket/name"."""
        return re.findall(r"(?:GET|HEAD|PUT|POST|DELETE) /\S*", self.log.read_text())


@dataclass(frozen=True)
class Bucket:
    """An empty bucket as another machine sees it."""

    name: str
    server: S3Server

    @property
    def url(self) -> str:
        """Of the bucket."""
        return f"s3://{self.name}"

    def get(self, key: str) -> bytes:
        """An object."""
        return self.server.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def put(self, key: str, data: bytes) -> None:
        """Replace an object."""
        self.server.client.put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self.server.client.delete_object(Bucket=self.name, Key=key)

    def contents(self, prefix: str) -> dict[str, bytes]:
        """Every object below a prefix, by the rest of its name."""
        listed = self.server.client.list_objects_v2(Bucket=self.name, Prefix=f"{prefix}/").get("Contents", [])
        return {entry["Key"].removeprefix(f"{prefix}/"): self.get(entry["Key"]) for entry in listed}


@contextmanager
def s3_serving(log: Path) -> Iterator[S3Server]:
    """Moto's server on a free port, whose output goes to `log`."""
    import boto3

    with (
        log.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stdout=file, stderr=file
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 60
            while (running := re.search(r"Running on (http://[\d.:]+)", log.read_text())) is None:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            client = boto3.client(
                "s3",
                endpoint_url=running[1],
                aws_access_key_id="test",
                aws_secret_access_key="test",
                region_name="us-east-1",
            )
            yield S3Server(running[1], log, client)
        finally:
            process.terminate()
