from importlib import metadata

from pipeline.recipe.provenance import surroundings


def test_a_checkout_that_is_not_installed_has_no_version(monkeypatch):
    installed = metadata.version

    def version(name: str) -> str:
        if name == "surround-distill":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    versions = surroundings()["versions"]
    assert versions["surround-distill"] is None
    assert versions["torch"] == installed("torch")
