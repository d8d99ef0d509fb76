"""Tango's worker, of both generations, in a double of it that does what shared parts of it do with each value of a VMMS,
against the real vmm-local. Usage: test_vmms.py VMM_LOCAL [BACKEND-OPTION...]; IMAGE names the docker backend's image."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.path.abspath(sys.argv[1])
BACKEND = sys.argv[2:] or ["--backend", "process"]
IMAGE = os.environ.get("IMAGE", "none")


class Config:
    PREFIX = "test-tango"
    VM_ULIMIT_FILE_SIZE = 100 * 1024 * 1024
    VM_ULIMIT_USER_PROC = 100
    MAX_OUTPUT_FILE_SIZE = 1000 * 1024
    JOB_RETRIES = 2
    VMM_LOCAL = PROGRAM
    VMM_LOCAL_BACKEND = BACKEND
    VMM_LOCAL_IMAGES = [IMAGE]


class TangoMachine:
    def __init__(self, id=None, name="image", image=None):
        self.id, self.name, self.image = id, name, image or IMAGE
        self.cores, self.memory, self.disk = None, None, None


class InputFile:
    def __init__(self, localFile, destFile):
        self.localFile, self.destFile = localFile, destFile


sys.modules["config"] = types.SimpleNamespace(Config=Config)
sys.modules["tangoObjects"] = types.SimpleNamespace(TangoMachine=TangoMachine)
spec = importlib.util.spec_from_file_location("vmmLocal", os.path.join(HERE, "../../vmm-local/tango/vmmLocal.py"))
vmmLocal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(vmmLocal)


def worker_2024(vmms, vm, files, timeout, network, output):
    """Returns the job's last trace line. Of the steps only waitVM is looked at; copyOut is always attempted."""
    if vmms.waitVM(vm, 60) == -1:
        return "rescheduled"
    vmms.copyIn(vm, files)
    status = vmms.runJob(vm, timeout, Config.MAX_OUTPUT_FILE_SIZE, network)
    vmms.copyOut(vm, output)
    return {
        0: "Success: Autodriver returned normally",
        1: "Error: Autodriver usage error (status=1)",
        2: "Error: Job timed out after %d seconds" % timeout,
        3: "Error: OS error while running job on VM",
    }.get(status, "Error: Unknown autodriver error (status=%d)" % status)


def worker_newer(vmms, vm, files, timeout, network, output):
    """Any status but 0 has the job run again on another machine, and at last there is no output at all."""
    for _ in range(Config.JOB_RETRIES + 1):
        status = {"initializeVM": vmms.initializeVM(vm), "waitVM": vmms.waitVM(vm, 60)}
        status["copyIn"] = vmms.copyIn(vm, files, 7)
        if status["copyIn"] == 0:
            ran = vmms.runJob(vm, timeout, Config.MAX_OUTPUT_FILE_SIZE, network)
            assert ran != -1, "msg would never be assigned"
            if ran == 0:
                status["copyOut"] = vmms.copyOut(vm, output)
                for step, value in status.items():
                    assert value == 0 and type(value) is int, (step, value)
                return "Success: Autodriver returned normally"
        vmms.safeDestroyVM(vm)
    return "Internal error: Unable to complete job"


class Case(unittest.TestCase):
    number = 1000

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.vmms = vmmLocal.VmmLocal()
        Case.number += 1
        self.vm = TangoMachine(Case.number)
        self.output = self.path("feedback")

    def tearDown(self):
        self.vmms.destroyVM(self.vm)
        self.assertEqual([machine.id for machine in self.vmms.getVMs()], [], "a machine is left")
        self.folder.cleanup()

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def files(self, script, **more):
        files = []
        for name, text in dict(more, run=script).items():
            with open(self.path(name), "w") as file:
                file.write(text)
            files.append(InputFile(self.path(name), name))
        with open(self.path("Makefile"), "w") as file:
            file.write("all:\n\t@sh ./run\n")
        return files + [InputFile(self.path("Makefile"), "Makefile")]

    def feedback(self):
        with open(self.output) as file:
            return file.read().splitlines()

    def both(self, script, timeout=30, network=True, **more):
        """What both workers say of a job, and what its feedback is."""
        told = []
        for worker in (worker_2024, worker_newer):
            files = self.files(script, **more)
            told.append((worker(self.vmms, self.vm, files, timeout, network, self.output), self.feedback()))
            os.unlink(self.output)
        return told


class Jobs(Case):
    def test_a_job_is_graded_and_its_last_line_is_the_score(self):
        for trace, lines in self.both("cat handin; echo '{\"scores\": {\"p1\": 10}}'", handin="mine\n"):
            self.assertEqual(trace, "Success: Autodriver returned normally")
            self.assertEqual(lines[0], "Autodriver: Job exited with status 0")
            self.assertIn("mine", lines)
            self.assertEqual(json.loads(lines[-1]), {"scores": {"p1": 10}})

    def test_what_make_says_is_in_the_first_line_and_no_error_of_tangos(self):
        for trace, lines in self.both("exit 3"):
            self.assertEqual(trace, "Success: Autodriver returned normally")
            self.assertEqual(lines[0], "Autodriver: Job exited with status 2", "make's own")

    def test_a_timeout_keeps_the_output_and_is_not_run_again(self):
        for trace, lines in self.both("echo begun; sleep 100", timeout=2):
            self.assertEqual(trace, "Success: Autodriver returned normally")
            self.assertEqual(lines[:2], ["Autodriver: Job timed out after 2 seconds", "begun"])

    def test_a_timeout_is_2_where_that_is_wanted(self):
        for self.vmms.status in ("classic", "pdl"):
            trace = worker_2024(self.vmms, self.vm, self.files("sleep 100"), 1, True, self.output)
            self.assertEqual(trace, "Error: Job timed out after 1 seconds")
            self.assertEqual(self.feedback()[0], "Autodriver: Job timed out after 1 seconds")

    def test_a_limit_that_tango_does_not_have_is_named(self):
        self.vmms.limits = ["--memory", "32M"]
        script = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo $?"
        trace = worker_2024(self.vmms, self.vm, self.files(script), 60, True, self.output)
        self.assertEqual(trace, "Success: Autodriver returned normally")
        self.assertIn("memory-limit", self.feedback()[0])

    def test_no_job_meets_the_files_of_another(self):
        worker_2024(self.vmms, self.vm, self.files("echo kept >left", secret="x"), 30, True, self.output)
        os.unlink(self.path("secret"))
        worker_2024(self.vmms, self.vm, self.files("ls"), 30, True, self.output)
        self.assertEqual(self.feedback()[1:], ["Makefile", "run"])

    def test_output_can_be_seen_while_the_job_runs(self):
        seen = []

        def look():
            for _ in range(100):
                seen.append(self.vmms.getPartialOutput(self.vm))
                if "begun" in seen[-1]:
                    return
                time.sleep(0.1)

        looker = threading.Thread(target=look)
        self.vmms.copyIn(self.vm, self.files("echo begun; sleep 4; echo ended"))
        looker.start()
        self.assertEqual(self.vmms.runJob(self.vm, 30, 1000, True), 0)
        looker.join()
        self.assertIn("begun", seen[-1])
        self.assertNotIn("ended", seen[-1])


class Failures(Case):
    """Whatever is missing or dies: integers, and something for the student to read."""

    def test_a_machine_that_cannot_be_made_is_minus_one_and_then_3(self):
        self.vmms.backend = ["--backend", "exec", "--connect", "echo no such machine >&2; exit 1"]
        self.assertEqual(self.vmms.initializeVM(self.vm), 0)
        self.assertEqual(self.vmms.waitVM(self.vm, 1), -1)
        self.assertEqual(self.vmms.copyIn(self.vm, self.files("true")), 0)
        self.assertEqual(self.vmms.runJob(self.vm, 5, 1000, True), 3)
        self.assertEqual(self.vmms.copyOut(self.vm, self.output), 0)
        self.assertIn("no such machine", self.feedback()[0])

    def test_a_program_that_is_not_there_is_told(self):
        self.vmms.program = "/nowhere/vmm-local"
        self.assertEqual(self.vmms.initializeVM(self.vm), -1)
        self.assertEqual(self.vmms.waitVM(self.vm, 1), -1)
        self.assertEqual(self.vmms.copyIn(self.vm, [], 7), -1)
        self.assertEqual(self.vmms.runJob(self.vm, 5, 1000), 3)
        self.assertEqual(self.vmms.copyOut(self.vm, self.output), 0)
        self.assertIn("/nowhere/vmm-local", self.feedback()[0])
        self.assertEqual((self.vmms.getVMs(), self.vmms.existsVM(self.vm), self.vmms.getPartialOutput(self.vm)), ([], False, ""))
        self.vmms.program = PROGRAM

    def test_files_that_are_not_there_are_minus_one(self):
        missing = [InputFile(self.path("missing"), "missing")]
        self.assertEqual(self.vmms.copyIn(self.vm, missing), -1)
        self.assertEqual(self.vmms.copyIn(self.vm, [InputFile(None, None)], 7), -1)

    def test_a_job_without_its_files_is_not_graded(self):
        missing = self.files("true") + [InputFile(self.path("missing"), "missing")]
        trace = worker_2024(self.vmms, self.vm, missing, 5, True, self.output)
        self.assertEqual(trace, "Error: OS error while running job on VM")
        self.assertIn("no machine", self.feedback()[0])

    def test_nonsense_is_told_and_raises_nothing(self):
        for vm in (TangoMachine(None), TangoMachine(self.vm.id, image=None), object()):
            vm.__dict__.update(memory="much") if hasattr(vm, "memory") else None
            for value in (self.vmms.waitVM(vm, None), self.vmms.copyIn(vm, [InputFile("a", "b\0")])):
                self.assertEqual(value, -1)
            self.assertEqual(self.vmms.runJob(vm, "soon", None), 3)
            self.assertEqual(self.vmms.copyOut(vm, "/tmp/a\0b"), -1)
            self.assertEqual((self.vmms.getPartialOutput(vm), self.vmms.destroyVM(vm)), ("", None))

    def test_limits_of_the_configuration_come_first(self):
        self.vmms.limits = ["--pids", "20", "--fsize=1M", "--wall", "1s"]
        trace = worker_2024(self.vmms, self.vm, self.files("ulimit -f; sleep 9"), 30, True, self.output)
        self.assertEqual(trace, "Success: Autodriver returned normally")
        self.assertEqual(self.feedback()[1], "2048", "blocks of 512 bytes")

    def test_cores_and_memory_of_the_machine_are_the_job_s(self):
        self.vm.cores, self.vm.memory = 1, 64
        self.vmms.copyIn(self.vm, self.files("cat /dev/zero | head -c 900M | tail"))
        if "docker" in BACKEND:
            label = "label=autodriver.machine=" + self.vmms._name(self.vm)
            words = ["docker", "ps", "--quiet", "--filter", label]
            machine = subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout.decode().split()
            words = ["docker", "inspect", "--format", "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}}"] + machine
            limits = subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout.decode().split()
            self.assertEqual(limits, ["1000000000", str((64 + vmmLocal.BESIDE) << 20)])
        self.assertEqual(self.vmms.runJob(self.vm, 30, 1000, True), 0)
        self.assertEqual(self.vmms.copyOut(self.vm, self.output), 0)
        self.assertEqual(self.feedback()[0], "Autodriver: Job exited with status 137: memory-limit")

    def test_a_feedback_file_that_cannot_be_written_is_minus_one(self):
        self.vmms.copyIn(self.vm, self.files("true"))
        self.vmms.runJob(self.vm, 5, 1000, True)
        self.assertEqual(self.vmms.copyOut(self.vm, "/nowhere/feedback"), -1)

    def test_output_of_a_job_that_was_never_run_says_so(self):
        self.assertEqual(self.vmms.copyOut(self.vm, self.output), 0)
        self.assertEqual(self.feedback(), ["Autodriver: No job has been run"])

    def test_a_vmm_local_that_is_killed_ends_its_job_and_is_3(self):
        self.vmms.copyIn(self.vm, self.files("echo begun; sleep 100"))

        def kill():
            while "begun" not in self.vmms.getPartialOutput(self.vm):
                time.sleep(0.1)
            subprocess.run(["pkill", "-9", "-f", "vm run-job " + self.vmms._name(self.vm)], check=True)

        killer = threading.Thread(target=kill)
        killer.start()
        self.assertEqual(self.vmms.runJob(self.vm, 60, 1000, True), 3)
        killer.join()
        self.assertEqual(self.vmms.copyOut(self.vm, self.output), 0)
        self.assertIn("begun", self.feedback())

    def test_a_machine_that_is_killed_ends_its_job_with_the_output_so_far(self):
        self.vmms.copyIn(self.vm, self.files("echo begun; sleep 100"))

        def kill():
            while "begun" not in self.vmms.getPartialOutput(self.vm):
                time.sleep(0.1)
            if "docker" in BACKEND:
                label = "label=autodriver.machine=" + self.vmms._name(self.vm)
                words = ["docker", "ps", "--quiet", "--filter", label]
                machine = subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout.decode().split()
                subprocess.run(["docker", "kill"] + machine, check=True, stdout=subprocess.DEVNULL)
            else:
                words = ["pgrep", "-f", "vm run-job " + self.vmms._name(self.vm)]
                caller = subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout.decode().split()
                subprocess.run(["pkill", "-9", "-P", ",".join(caller)], check=True)

        killer = threading.Thread(target=kill)
        killer.start()
        self.assertEqual(self.vmms.runJob(self.vm, 60, 1000, True), 3)
        killer.join()
        self.assertEqual(self.vmms.copyOut(self.vm, self.output), 0)
        self.assertTrue(self.feedback()[0].startswith("Autodriver: The machine could not run the job: "), self.feedback())
        self.assertIn("begun", self.feedback())

    def test_destroying_twice_is_destroying(self):
        self.vmms.initializeVM(self.vm)
        self.assertTrue(self.vmms.existsVM(self.vm))
        self.assertEqual([(machine.id, machine.name) for machine in self.vmms.getVMs()], [(self.vm.id, "image")])
        self.vmms.safeDestroyVM(self.vm)
        self.assertIsNone(self.vmms.destroyVM(self.vm))
        self.assertFalse(self.vmms.existsVM(self.vm))

    def test_machines_of_another_tango_are_not_listed(self):
        own = Config.PREFIX
        try:
            Config.PREFIX = own + "-7"
            self.vmms.initializeVM(self.vm)
            self.assertEqual([machine.id for machine in self.vmms.getVMs()], [self.vm.id])
            Config.PREFIX = own
            self.assertEqual(self.vmms.getVMs(), [])
        finally:
            Config.PREFIX = own + "-7"
            self.vmms.destroyVM(self.vm)
            Config.PREFIX = own

    def test_a_policy_that_there_is_not_is_refused_at_the_start(self):
        Config.VMM_LOCAL_STATUS = "none"
        self.assertRaises(ValueError, vmmLocal.VmmLocal)
        del Config.VMM_LOCAL_STATUS


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as state:
        os.environ["XDG_STATE_HOME"] = state
        result = unittest.main(argv=sys.argv[:1], exit=False, verbosity=2).result
    bad = len(result.failures) + len(result.errors) + len(result.skipped)
    print("%d passed, %d failed" % (result.testsRun - bad, bad))
    sys.exit(bad != 0)
