"""Its place here puts this folder on sys.path, so that every test can `import bundles`."""


def pytest_configure(config):
    # The first forward-mode derivative imports torch's own decompositions, which it compiles by the old way.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:DeprecationWarning")
