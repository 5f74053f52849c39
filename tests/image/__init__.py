"""The images of the Dockerfile, built and run: `make image-test`, not part of `make test`."""
