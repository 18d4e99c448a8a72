"""Its place here puts this folder on sys.path, so that every test can `import bundles`."""
