"""Its place here puts this folder on sys.path, so that every test can `import bundles`."""

import pytest


def pytest_configure(config):
    # The first forward-mode derivative imports torch's own decompositions, which it compiles by the old way.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Trainings keep frames and embeddings across runs: tests do so in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RFP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
