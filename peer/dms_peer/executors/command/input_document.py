"""The JSON document that the owner's program reads from its standard input."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from dms_resources.units import encode_value

from ..executor import JobSpec

__all__ = ["INPUT_VERSION", "input_document"]

INPUT_VERSION: Final = 1


def input_document(spec: JobSpec, folder: Path, group: str) -> bytes:
    """Returns the document as one line of JSON, with the DMS's field names; `group` is the name of the job's cgroup.

    Files of the job are named by their path, so that a document has no binary content.
    """
    job: dict[str, Any] = msgspec.to_builtins(spec.job, enc_hook=encode_value)
    job.pop("files", None)
    files = [
        {"name": file.name, "path": str(folder / "files" / file.name), "executable": file.executable}
        for file in spec.job.files
    ]
    document = {
        "version": INPUT_VERSION,
        "name": spec.name,
        "lease": {
            "lease_id": spec.lease_id,
            "fence": spec.fence,
            "resources": spec.resources,
            "ports": spec.ports,
            "devices": spec.devices,
        },
        "job": job,
        "files": files,
        "directory": str(folder / "work"),
        "cgroup": group,
    }
    return msgspec.json.encode(document, enc_hook=encode_value) + b"\n"
