"""Opens the store at a path or URL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec

from data_cache.errors import SettingError
from data_cache.storage.folder_store import FolderStore
from data_cache.storage.object_store import ObjectStore
from data_cache.storage.store import CacheStore

_REMOTE: Mapping[str, Any] = {"use_listings_cache": False}  # other machines write as well: nothing is remembered
_S3: Mapping[str, Any] = {
    "max_concurrency": 1,  # more would ask for the size of every object before it is read: twice the requests
    # An endpoint that refuses is given up after seconds; the "legacy" mode of botocore takes up to 15 for each request.
    "config_kwargs": {"retries": {"mode": "standard"}},
}


def open_store(location: Path | str) -> CacheStore:
    """The store at a path or URL (s3://bucket/prefix, gs://bucket/prefix); nothing is read yet.

    Raises:
        SettingError: if the URL is of a kind that is not installed.
    """
    if "://" not in str(location):
        return FolderStore(Path(location))
    url = str(location).rstrip("/")
    options = {**_REMOTE, **(_S3 if url.startswith("s3://") else {})}
    try:
        fs, prefix = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise SettingError(f"{url}: {error}; s3:// needs pip install 'surround-distill[s3]', gs:// [gs]") from error
    return ObjectStore(url, fs, prefix)
