"""vmmLocal.py - Tango's jobs by vmm-local: put this file into Tango's vmms/ directory.

Every machine is one of `vmm-local vm`, on any of its backends. It works for the worker of 2024 and for the newer one:
every step returns an integer and raises nothing, whatever is missing or dies, because an exception or None there leaves
the student's job in progress for ever (Tango #152, #288).

In Tango's config.py (all optional):

    VMM_LOCAL            the program; default "vmm-local"
    VMM_LOCAL_BACKEND    options of `vm initialize`: ["--backend", "docker"] (default), ["--backend", "ssh", "--host", ...]
    VMM_LOCAL_IMAGES     names of images that jobs may ask for; default: those that the engine has
    VMM_LOCAL_NETWORK    the containers' network for jobs that may use one, such as "bridge"; default: no network for any job
    VMM_LOCAL_STATUS     what runJob returns (below); default "legacy"
    VMM_LOCAL_LIMITS     options of `vm run-job` for every job, such as ["--memory", "1G", "--disk", "1G"]

What runJob returns: `classic` is the status of Tango's autodriver: 0 the job ran, 2 it timed out, 3 the machine failed.
`legacy` says 0 for a timeout as well, as Tango's Docker VMMSs do in effect: the newer worker would run the job again,
three times, and throw the student's output away. The first line of the feedback tells either way. `pdl` is `classic`
for workers that take -1 for a timeout, too: it is never returned, since it would leave open whether the job still runs.
"""

import functools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import config
from tangoObjects import TangoMachine

Config = config.Config

# What Tango's autodriver returns.
RAN, TIMED_OUT, OS_ERROR = 0, 2, 3
# The longest that anything but a job may take, in seconds.
STEP = 420
# What a machine has besides what its job may have, in megabytes: autodriver, and the kernel's own.
BESIDE = 256
# What vmm-local may take beyond a job's own time: copying both ways, and putting the machine back.
AROUND = 900
# Machine names are 1 to 64 of these.
FORBIDDEN = re.compile(r"[^A-Za-z0-9._-]")


def never_raises(failed):
    """Whatever goes wrong in a call that Tango makes, it returns `failed`, and the log says what."""

    def decorate(call):
        @functools.wraps(call)
        def guarded(self, *args, **kwargs):
            try:
                return call(self, *args, **kwargs)
            except Exception:  # the worker would not survive it, whatever it is
                self.log.exception("%s", call.__name__)
                return failed() if callable(failed) else failed

        return guarded

    return decorate


class VmmLocal(object):
    def __init__(self):
        self.log = logging.getLogger("VmmLocal")
        self.program = getattr(Config, "VMM_LOCAL", "vmm-local")
        self.backend = list(getattr(Config, "VMM_LOCAL_BACKEND", ["--backend", "docker"]))
        self.network = getattr(Config, "VMM_LOCAL_NETWORK", None)
        self.limits = list(getattr(Config, "VMM_LOCAL_LIMITS", []))
        self.status = getattr(Config, "VMM_LOCAL_STATUS", "legacy")
        if self.status not in ("legacy", "classic", "pdl"):
            raise ValueError("VMM_LOCAL_STATUS is '%s'; it is 'legacy', 'classic' or 'pdl'" % self.status)
        self.headers = {}  # of the feedback, by machine, from runJob until copyOut
        self.lock = threading.Lock()

    # The seven calls

    @never_raises(-1)
    def initializeVM(self, vm):
        """Makes the machine; 0 or -1."""
        self.destroyVM(vm)
        return self._make(vm)

    @never_raises(-1)
    def waitVM(self, vm, max_secs):
        """Waits until it answers; 0 or -1."""
        if not self.existsVM(vm) and self._make(vm) != 0:
            return -1
        return -1 if self._call(["wait", self._name(vm), "--timeout", "%ds" % max_secs], max_secs + STEP)[0] else 0

    @never_raises(-1)
    def copyIn(self, vm, inputFiles, job_id=None):
        """Copies the job's files, flat, into a machine that has none of another job; 0 or -1, and then there is no
        machine: the worker of 2024 runs the job all the same, and must not grade what is not whole."""
        if self.initializeVM(vm) != 0:
            return -1
        copied = self._copy(vm, inputFiles)
        if copied != 0:
            self.destroyVM(vm)
        return copied

    def _copy(self, vm, inputFiles):
        try:
            # In a directory of their own: vmm-local takes a colon in a path for a destination.
            with tempfile.TemporaryDirectory(prefix="vmm-local-") as folder:
                for file in inputFiles:
                    shutil.copy(file.localFile, os.path.join(folder, os.path.basename(file.destFile)))
                return -1 if self._call(["copy-in", self._name(vm), folder], STEP)[0] else 0
        except (OSError, shutil.Error, AttributeError, TypeError, ValueError) as why:
            self.log.warning("%s: cannot copy in: %s", self._name(vm), why)
            return -1

    @never_raises(OS_ERROR)
    def runJob(self, vm, runTimeout, maxOutputFileSize, disableNetwork=False):
        """Runs make on what was copied in; what it returns, VMM_LOCAL_STATUS says. It ends, and the job with it."""
        limits = {
            "--wall": "%ds" % max(1, int(runTimeout or 60)),
            "--output": str(int(maxOutputFileSize or 1024 * 1000)),
            "--fsize": getattr(Config, "VM_ULIMIT_FILE_SIZE", None),
            "--pids": getattr(Config, "VM_ULIMIT_USER_PROC", None),
            "--memory": "%dM" % int(vm.memory) if getattr(vm, "memory", None) else None,
            "--net": "host" if self.network and not disableNetwork else "none",
        }
        words = ["run-job", self._name(vm), "--quiet"] + self.limits
        given = [word.split("=")[0] for word in self.limits]
        for option, value in limits.items():
            if value and option not in given:
                words += [option, str(value)]
        code, _, said = self._call(words, int(runTimeout or 60) + AROUND)
        report = self._report(vm)
        header, ended = headline(report, runTimeout, said)
        with self.lock:
            self.headers[self._name(vm)] = header
        self.log.info("%s: vmm-local says %s: %s", self._name(vm), code, header)
        if ended == OS_ERROR:
            return OS_ERROR
        return RAN if self.status == "legacy" else ended

    @never_raises(-1)
    def copyOut(self, vm, destFile):
        """Writes the feedback, and destroys the machine; 0 or -1."""
        name = self._name(vm)
        with self.lock:
            header = self.headers.pop(name, "Autodriver: No job has been run")
        output = self._call(["partial-output", name, "--bytes", "1G"], STEP, text=False)[1]
        try:
            with open(destFile, "wb") as dest:
                dest.write(header.encode("utf-8", "replace") + b"\n" + output)
            written = 0
        except (OSError, TypeError, ValueError) as why:
            self.log.warning("%s: cannot write %s: %s", name, destFile, why)
            written = -1
        self.destroyVM(vm)
        return written

    @never_raises(None)
    def destroyVM(self, vm):
        """Destroys it, whatever runs on it; one that is not there is destroyed."""
        with self.lock:
            self.headers.pop(self._name(vm), None)
        self._call(["destroy", self._name(vm)], STEP)

    @never_raises(list)
    def getVMs(self):
        """Every machine of this Tango."""
        machines = []
        prefix = self._prefix()
        for name in self._call(["list"], STEP)[1].split():
            if not name.startswith(prefix):
                continue
            number, _, image = name[len(prefix):].partition(".")
            if number.isdigit():
                machine = TangoMachine()
                machine.id, machine.name = int(number), image
                machines.append(machine)
        return machines

    # What else Tango asks

    @never_raises(None)
    def safeDestroyVM(self, vm):
        """Destroys it, and looks whether it is gone, for at most DESTROY_SECS."""
        end = time.time() + getattr(Config, "DESTROY_SECS", 5)
        self.destroyVM(vm)
        while self.existsVM(vm) and time.time() < end:
            time.sleep(0.2)
            self.destroyVM(vm)
        if self.existsVM(vm):
            self.log.warning("%s is still there", self._name(vm))

    @never_raises(False)
    def existsVM(self, vm):
        return self._name(vm) in self._call(["list"], STEP)[1].split()

    @never_raises(list)
    def getImages(self):
        images = getattr(Config, "VMM_LOCAL_IMAGES", None)
        if images is not None:
            return list(images)
        engine = "docker"
        if "--engine" in self.backend:
            engine = self.backend[self.backend.index("--engine") + 1]
        code, listed, _ = self._run([engine, "images", "--format", "{{.Repository}}:{{.Tag}}"], STEP)
        names = [line for line in listed.split() if not line.startswith("<none>")]
        # Jobs name an image with its tag, or without one where that is "latest".
        return sorted(set(names + [name[: -len(":latest")] for name in names if name.endswith(":latest")]))

    @never_raises("")
    def getPartialOutput(self, vm):
        """What the job has printed so far; nothing, where there is none."""
        most = getattr(Config, "MAX_OUTPUT_FILE_SIZE", 1000 * 1024)
        output = self._call(["partial-output", self._name(vm), "--bytes", str(most)], STEP, text=False)[1]
        return output.decode("utf-8", "replace")

    def instanceName(self, id, name):
        return "%s-%d-%s" % (Config.PREFIX, id, name)

    # How

    def _prefix(self):
        """With an end of its own: Tangos whose PREFIX is "prod" and "prod-2" may share a host."""
        return FORBIDDEN.sub("_", Config.PREFIX).replace(".", "_") + "."

    def _name(self, vm):
        return (self._prefix() + FORBIDDEN.sub("_", "%d.%s" % (vm.id, vm.name)))[:64]

    def _make(self, vm):
        words = ["initialize", self._name(vm)] + self.backend
        if any(word in ("docker", "--backend=docker") for word in self.backend):
            words += ["--image", vm.image]
            if getattr(vm, "memory", None):
                words += ["--machine-memory", "%dM" % (int(vm.memory) + BESIDE)]
            if getattr(vm, "cores", None):
                words += ["--machine-cpus", str(int(vm.cores))]
            if self.network:
                words += ["--machine-network", self.network]
        return -1 if self._call(words, 2 * STEP)[0] else 0

    def _report(self, vm):
        """The report on the job that has just ended; None, where there is none."""
        try:
            with tempfile.NamedTemporaryFile(prefix="vmm-local-") as file:
                if self._call(["copy-out", self._name(vm), file.name, "--report"], STEP)[0] != 0:
                    return None
                with open(file.name) as written:
                    report = json.load(written)
            return report if isinstance(report, dict) else None
        except (OSError, ValueError):
            return None

    def _call(self, words, seconds, text=True):
        return self._run([self.program, "vm"] + words, seconds, text)

    def _run(self, words, seconds, text=True):
        """The status, stdout and stderr of a program; it is killed after `seconds`, and -1 is its status then."""
        nothing = "" if text else b""
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, TypeError, ValueError) as why:
            self.log.warning("cannot start %s: %s", words[0], why)
            return -1, nothing, "cannot start %s: %s" % (words[0], why)
        try:
            out, err = process.communicate(timeout=seconds)
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            code = -1
        said = err.decode("utf-8", "replace").strip()
        if code != 0 and said:
            self.log.info("%s: %s", " ".join(words[:4]), said)
        return code, out.decode("utf-8", "replace") if text else out, said


def headline(report, timeout, said):
    """The first line of the feedback, in the words of Tango's autodriver, and the status that it would return."""
    cause = (report or {}).get("cause")
    fault = ((report or {}).get("fault") or {}).get("message")
    if cause == "exited":
        return "Autodriver: Job exited with status %d" % (report.get("exit_code") or 0), RAN
    if cause == "signaled":
        return "Autodriver: Job exited with status %d" % (128 + (report.get("signal") or 0)), RAN
    if cause == "wall-limit":
        return "Autodriver: Job timed out after %d seconds" % int(timeout or 60), TIMED_OUT
    if cause is None or cause in ("setup-failed", "internal-error", "cancelled"):
        why = fault or (said.splitlines() or ["the job was %s" % (cause or "not run")])[-1]
        return "Autodriver: The machine could not run the job: %s" % why, OS_ERROR
    # A limit that Tango's autodriver does not have.
    return "Autodriver: Job exited with status 137: %s" % cause, RAN
