"""The executor `docker`: containers, through the API of the Docker Engine on a Unix socket (Docker, Podman)."""
