"""Opening the store at a path or URL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec

from data_cache.errors import SettingError
from data_cache.storage.folder_store import FolderStore
from data_cache.storage.object_store import ObjectStore
from data_cache.storage.store import CacheStore

_REMOTE: Mapping[str, Any] = {"use_listings_cache": False}  # other machines write, too, so listings go stale
_S3: Mapping[str, Any] = {
    "max_concurrency": 1,  # more would query the size of every object before reading it: twice the requests
    # "standard" gives up on a refusing endpoint after seconds; botocore's "legacy" takes up to 15 s per request.
    "config_kwargs": {"retries": {"mode": "standard"}},
}


def open_store(location: Path | str) -> CacheStore:
    """The store at a path or URL (s3://bucket/prefix, gs://bucket/prefix); nothing is read yet.

    Raises:
        SettingError: if support for this kind of URL is not installed.
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
