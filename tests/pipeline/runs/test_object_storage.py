"""The commands on a cache in object storage. The cache itself: data_cache/shards/test_remote_cache.py."""

import sys
import time

import pytest
from support.caches import contents
from support.object_storage import CLOSED_PORT
from support.surround import RECIPE, surround
from support.tiny_encoder import TINY_ENCODER


@pytest.fixture
def url(bucket) -> str:
    return f"{bucket.url}/some/run"


@pytest.fixture
def recipe(tmp_path, teacher_folder) -> str:
    path = tmp_path / "tiny.toml"
    text = RECIPE.format(teacher=teacher_folder).replace("drive-00[:1]", "drive-00[:2]")
    text = text.replace("steps = 3", "steps = 2").replace(TINY_ENCODER, "resnet-10")  # known to its workers, too
    path.write_text(text + "[cluster]\nworkers = 1\n")
    return str(path)


@pytest.mark.torture
def test_all_commands_and_worker_processes_work_on_object_storage(bucket, url, recipe, tmp_path):
    options = ("--run", tmp_path / "run", "--set", f"teacher_cache.location={url}")
    code, text = surround("teacher-cache", recipe, *options, "--part", "2/2")
    assert (code, "1 shard written" in text, "1 of 2 shards" in text) == (0, True, True), text
    code, text = surround("teacher-cache", recipe, *options, "--scheduler", "local")  # the other, in another process
    assert (code, "1 shard written" in text, "1 already done" in text, f"in {url}" in text) == (0, True, True, True), (
        text
    )
    assert not (tmp_path / "run/cache").exists()

    assert surround("teacher-cache", recipe, "--run", tmp_path / "folder")[0] == 0
    folder = contents(tmp_path / "folder/cache")
    assert bucket.contents("some/run") == {name: data for name, data in folder.items() if name != "claims.lock"}

    for target in (url, tmp_path / "run"):  # the run folder remembers where its cache is
        code, text = surround("cache", "status", target)
        assert (code, "2 of 2 shards" in text, url in text) == (0, True, True), text
        code, text = surround("cache", "verify", target)
        assert (code, "verified: 2 of 2 shards" in text) == (0, True), text
    code, text = surround("train-student", recipe, *options)
    assert (code, "2 steps" in text) == (0, True), text


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"AWS_ENDPOINT_URL": CLOSED_PORT}, 1, "Could not connect to the endpoint"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, 1, "Invalid endpoint: nonsense"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, 1, "Unable to locate credentials"),
        ({"s3fs": None}, 2, "s3:// needs pip install 'surround-distill[s3]'"),
    ],
    ids=["no answer", "no address", "no credentials", "no s3fs"],
)
def test_object_storage_that_cannot_be_reached_is_one_clear_error_after_seconds(
    url, recipe, tmp_path, monkeypatch, forget_connections, change, code, message
):
    for name, value in change.items():
        if name == "s3fs":
            monkeypatch.setitem(sys.modules, "s3fs", None)
            monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
        elif value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    forget_connections()
    options = ("--run", tmp_path / "run", "--set", f"teacher_cache.location={url}")
    for arguments in (("cache", "status", url), ("teacher-cache", recipe, *options)):
        begin = time.monotonic()
        found, text = surround(*arguments)
        assert (found, text.count("Error: "), message in text) == (code, 1, True), text
        assert time.monotonic() - begin < 15  # some 3 s of retries; the rest is for a busy machine
    assert not (tmp_path / "run/recipe.toml").exists()


def test_a_bucket_that_does_not_exist_is_one_clear_error(bucket, recipe, tmp_path):
    url = "s3://no-such-bucket/run"
    code, text = surround("cache", "status", url)
    assert (code, f"Error: no cache at {url}" in text) == (1, True), text
    code, text = surround("teacher-cache", recipe, "--run", tmp_path / "run", "--set", f"teacher_cache.location={url}")
    assert (code, "Error: cannot write s3://no-such-bucket/run/" in text, "bucket does not exist" in text) == (
        1,
        True,
        True,
    )
