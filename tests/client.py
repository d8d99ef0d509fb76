#!/usr/bin/env python3
"""Runs one job: client.py AUTODRIVER JOBDIR [--doc JSON] [--get GLOB:DEST]; exits as `autodriver run` does.
Written from the documentation of the protocol crate alone, with the standard library alone."""
import argparse
import io
import json
import os
import struct
import subprocess
import sys
import tarfile

HOST_SIGNATURE, GUEST_SIGNATURE = b"\x89ADH\r\n\x1a\n", b"\x89ADG\r\n\x1a\n"
PAYLOAD_MAX, NOISE_MAX, JOB = 1 << 20, 64 << 10, 1
HELLO, OPEN, PUT, RUN, GET, _, CLOSE = range(1, 8)
(G_HELLO, OPENED, PUT_DONE, STARTED, OUTPUT, STDOUT, STDERR, REPORT, DATA, GET_DONE, CLOSED,
 _, ERROR) = range(257, 270)


class Guest:
    """A connection: frames in both directions."""

    def __init__(self, autodriver):
        self.process = subprocess.Popen([autodriver, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdin.write(HOST_SIGNATURE)
        self.send(HELLO, b'{"protocol": 1, "name": "client.py", "version": "1", "capabilities": []}', job=0)
        seen = b""
        while not seen.endswith(GUEST_SIGNATURE):
            if len(seen) > NOISE_MAX + 8:
                raise ConnectionError(f"no signature within {NOISE_MAX} bytes")
            seen += self.read(1)
        if self.expect(G_HELLO, job=0)["protocol"] != 1:
            raise ConnectionError("the guest speaks another protocol")

    def read(self, count):
        """Exactly that many bytes."""
        data = self.process.stdout.read(count)
        if len(data) < count:
            raise ConnectionError("the guest is gone")
        return data

    def send(self, kind, payload=b"", job=JOB):
        self.process.stdin.write(struct.pack("<IHHI", len(payload), kind, 0, job) + payload)
        self.process.stdin.flush()

    def frame(self, job=JOB):
        """The next frame's kind and payload; an error frame is raised."""
        length, kind, zero, number = struct.unpack("<IHHI", self.read(12))
        if length > PAYLOAD_MAX or zero != 0:
            raise ConnectionError(f"bad frame: {length} bytes, kind {kind}, reserved {zero}")
        payload = self.read(length)
        if kind == ERROR:
            raise ConnectionError("{code}: {message}".format(**json.loads(payload)))
        if number != job:
            raise ConnectionError(f"frame {kind} for job {number}")
        return kind, payload

    def expect(self, wanted, job=JOB):
        kind, payload = self.frame(job)
        if kind != wanted:
            raise ConnectionError(f"frame {kind} where {wanted} was expected")
        return json.loads(payload) if payload else None


def put(guest, directory):
    """The content of a directory, as one tar stream."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(directory, ".")
    for start in range(0, archive.tell(), PAYLOAD_MAX):
        guest.send(PUT, bytes(archive.getbuffer()[start:start + PAYLOAD_MAX]))
    guest.send(PUT)
    guest.expect(PUT_DONE)


def run(guest, document):
    """Runs a job document; returns the report."""
    guest.send(RUN, json.dumps(document).encode())
    while True:
        kind, payload = guest.frame()
        if kind in (OUTPUT, STDOUT, STDERR):
            with open(2 if kind == STDERR else 1, "wb", closefd=False) as stream:
                stream.write(payload)
        elif kind == REPORT:
            return json.loads(payload)
        elif kind != STARTED:
            raise ConnectionError(f"frame {kind} while the job runs")


def get(guest, glob, dest):
    """Files that match, as regular files below dest: the guest is not trusted."""
    guest.send(GET, json.dumps({"globs": [glob]}).encode())
    archive = []
    kind, payload = guest.frame()
    while kind == DATA:
        archive.append(payload)
        kind, payload = guest.frame()
    if kind != GET_DONE:
        raise ConnectionError(f"frame {kind} in an archive")
    with tarfile.open(fileobj=io.BytesIO(b"".join(archive))) as tar:
        for entry in tar:
            if not entry.isreg() or entry.name.startswith("/") or ".." in entry.name.split("/"):
                raise ConnectionError(f"archive entry {entry.name!r} is refused")
            path = os.path.join(dest, entry.name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(tar.extractfile(entry).read())


def status(report, restore):
    if "poisoned" in (report["restore"]["state"], restore["state"]):
        return 123
    if report["cause"] in ("setup-failed", "internal-error"):
        fault = report.get("fault", {})
        print(f"client: {fault.get('message')}", file=sys.stderr)
        return {"ENOENT": 127}.get(fault.get("errno"), 126) if fault.get("step") == "exec" else 125
    ends = {"exited": report.get("exit_code"), "signaled": 128 + report.get("signal", 0), "cancelled": 143}
    return ends.get(report["cause"], 124)


def main():
    def error(message):
        raise ValueError(message)

    parser = argparse.ArgumentParser()
    parser.error = error
    parser.add_argument("autodriver")
    parser.add_argument("jobdir")
    parser.add_argument("--doc", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--get", action="append", default=[], metavar="GLOB:DEST")
    args = parser.parse_args()
    guest = Guest(args.autodriver)
    guest.send(OPEN, b"{}")
    guest.expect(OPENED)
    put(guest, args.jobdir)
    report = run(guest, args.doc)
    for pair in args.get:
        get(guest, *pair.rsplit(":", 1))
    guest.send(CLOSE)
    code = status(report, guest.expect(CLOSED)["restore"])
    guest.process.communicate()
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        print(f"client: {error}", file=sys.stderr)
        sys.exit(125)
