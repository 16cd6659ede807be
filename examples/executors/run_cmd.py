#!/usr/bin/env python3
"""A program for the executor `command`: runs the `cmd` of a job as a process of the peer's user.

THIS IS NO ISOLATION. The job reads what the peer's user reads, its keys included. Offer it to peers that you would give
an account on the machine, and to nobody else (`access` in peer.yaml). The executor limits CPU, memory and processes.

    executors:
      command: {command: [/usr/local/bin/run_cmd.py]}

The program reads the job from standard input, says that it is ready, and becomes the job: so signals reach the job, and
its exit code is the executor's.
"""

import json
import os
import sys


def main() -> None:
    document = json.load(sys.stdin)
    execution = document["job"]["execution"]
    command = [*execution.get("entrypoint", []), *execution.get("cmd", [])]
    if not command:
        say({"error": "the job has no cmd"})
        sys.exit(1)
    environment = dict(os.environ)
    environment |= dict(entry.split("=", 1) for entry in execution.get("environment", []))
    environment["DMS_FILES"] = os.path.dirname(document["files"][0]["path"]) if document["files"] else ""
    # What the executor finds its processes by is not the job's to choose.
    environment["DMS_JOB"] = document["name"]
    os.chdir(os.path.join(document["directory"], execution.get("working_directory", "")))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # A job listens on the machine itself, on the ports that it names.
    endpoints = [{"port": port["private"], "host": "127.0.0.1"} for port in document["job"].get("ports", [])]
    say({"ready": True, "endpoints": endpoints})
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


def say(line: object) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
