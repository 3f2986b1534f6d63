"""The containers, really run: `make test-containers`."""
