"""Tests that run the containers: `make test-containers`."""
