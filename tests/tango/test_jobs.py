"""Jobs like Tango's own samples, 1 to 10, in containers of a grading image, started exactly as Tango's Docker VMMS does;
what the student gets is compared to the byte. Usage: test_jobs.py IMAGE; DOCKER_HOST names the engine."""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

IMAGE = sys.argv[1]
OSIZE = 1024000
# As in vmms/localDocker.py; the working directory of the image is /home.
COMMAND = (
    "cp -r mount/* autolab/; "
    'su autolab -c "autodriver -u 100 -f 104857600 -t {timeout} -o %d autolab > output/feedback 2>&1"; '
    "cp output/feedback mount/feedback" % OSIZE
)
MAKEFILE = "autograde:\n\tbash hello.sh\n"
ELIDED = b"\n...[excess bytes elided]...\n"

GRADER = """
autograde:
\t@tar xf autograde.tar
\t@cp handin.c src/
\t@$(MAKE) --no-print-directory -C src
"""
SRC_MAKEFILE = """
all:
\tgcc -Wall -o handin handin.c
\t./handin 6 7
\t@[ "$$(./handin 6 7)" = 42 ] && echo '{"scores": {"Correctness": 20}}' || echo '{"scores": {"Correctness": 0}}'
"""
HANDIN = """
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) { printf("%d\\n", atoi(argv[1]) * atoi(argv[argc - 1])); return 0; }
"""
EATER = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(void) {
    printf("eating\\n");
    fflush(stdout);
    for (int i = 0; i < 1024; i++) memset(malloc(1 << 20), 1, 1 << 20);
    printf("ate it all\\n");
    return 0;
}
"""


def bash(script):
    return {"Makefile": MAKEFILE, "hello.sh": script}


def exited(status, output):
    return ("Autodriver: Job exited with status %d\n%s" % (status, output)).encode()


def timed_out(seconds, output):
    return ("Autodriver: Job timed out after %d seconds\n%s" % (seconds, output)).encode()


class Job:
    def __init__(self, files, timeout=60, tar=None, halfway=None):
        self.files, self.timeout, self.tar, self.halfway = files, timeout, tar, halfway

    def run(self, name):
        """The feedback, what an observer saw half way, and what the job has left in its container."""
        with tempfile.TemporaryDirectory() as folder:
            for file, text in self.files.items():
                with open(os.path.join(folder, file), "w") as out:
                    out.write(text)
            if self.tar:
                self.pack(os.path.join(folder, "autograde.tar"))
            for file in os.listdir(folder):  # by NamedTemporaryFile, as in restful_tango/server.py; cp -r keeps it
                os.chmod(os.path.join(folder, file), 0o600)
            container = "tango-job-%d-%s" % (os.getpid(), name)
            command = COMMAND.format(timeout=self.timeout) + "; ls -A autograde /tmp /var/tmp > mount/left"
            command += "; cat /proc/[0-9]*/comm >> mount/left"
            words = ["docker", "run", "--rm", "--name", container, "--network", "none", "--memory", "2g"]
            words += ["--pids-limit", "1000", "-v", folder + ":/home/mount", IMAGE, "sh", "-c", command]
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            seen = self.look(container) if self.halfway else None
            said = process.communicate(timeout=300)[0]
            with open(os.path.join(folder, "feedback"), "rb") as file:
                feedback = file.read()
            with open(os.path.join(folder, "left")) as file:
                return feedback, seen, file.read(), said

    def pack(self, path):
        with tarfile.open(path, "w") as archive, tempfile.TemporaryDirectory() as folder:
            for file, text in self.tar.items():
                with open(os.path.join(folder, file), "w") as out:
                    out.write(text)
                archive.add(os.path.join(folder, file), "src/" + file)

    def look(self, container):
        """As Tango does for partial output, until there is what is waited for."""
        for _ in range(100):
            words = ["docker", "exec", container, "head", "-c", str(OSIZE), "autograde/output.log"]
            seen = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
            if self.halfway in seen:
                return seen
            time.sleep(0.1)
        return None


JOBS = {
    "1": Job(bash("echo Hello\n")),
    "2": Job(bash("echo Hello\nwhile :; do :; done\n"), timeout=3),
    "3": Job({"Makefile": GRADER, "handin.c": HANDIN}, tar={"Makefile": SRC_MAKEFILE}),
    "4": Job(bash("echo Hello\nexit 3\n")),
    "5": Job(bash("while :; do echo 'Hello again'; done\n"), timeout=5),
    "6": Job(bash("echo bomb\nbomb() { bomb | bomb & }; bomb\nwait\nsleep 60\n"), timeout=5),
    "7": Job({"Makefile": "autograde:\n\t@gcc -O0 -o bug bug.c && ./bug\n", "bug.c": EATER}),
    "8": Job(bash("for i in 0 1 2 3; do printf 'Any text %d' $i; sleep 0.5; done\n")),
    "9": Job({"Makefile": "autograde:\n\tpython3 hello.py\n", "hello.py": "import time\n\nfor i in range(100):\n"
              "    print('sleeping {}'.format(i), flush=True)\n    time.sleep(1)\n"}, timeout=4),
    "10": Job(bash("for i in 1 2 3 4 5 6; do echo \"Hello $i times\"; sleep 1; done\n"), halfway=b"Hello 3 times\n"),
}


class Samples(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # RLIMIT_NPROC counts all processes of a uid, whichever container they are in: the bomb is alone.
        with ThreadPoolExecutor(4) as pool:
            started = {name: pool.submit(job.run, name) for name, job in JOBS.items() if name != "6"}
        cls.ended = {name: run.result() for name, run in started.items()}
        cls.ended["6"] = JOBS["6"].run("6")

    def feedback(self, name):
        feedback, _, left, said = self.ended[name]
        self.assertEqual(left, "/tmp:\n\n/var/tmp:\n\nautograde:\nsh\n", "what is left in the container")
        self.assertEqual(said, b"", "what the container has said")
        return feedback

    def test_1_a_simple_job(self):
        self.assertEqual(self.feedback("1"), exited(0, "bash hello.sh\nHello\n"))

    def test_2_a_job_that_never_ends(self):
        self.assertEqual(self.feedback("2"), timed_out(3, "bash hello.sh\nHello\n"))

    def test_3_a_real_grader(self):
        expected = "gcc -Wall -o handin handin.c\n./handin 6 7\n42\n{\"scores\": {\"Correctness\": 20}}\n"
        self.assertEqual(self.feedback("3"), exited(0, expected))

    def test_4_a_status_that_is_not_zero(self):
        expected = "bash hello.sh\nHello\nmake: *** [Makefile:2: autograde] Error 3\n"
        self.assertEqual(self.feedback("4"), exited(2, expected))

    def test_5_output_without_end(self):
        line, output = self.feedback("5").split(b"\n", 1)
        self.assertEqual(line, b"Autodriver: Job timed out after 5 seconds")
        again = b"Hello again\n"
        begin = (b"bash hello.sh\n" + again * OSIZE)[: OSIZE // 2]
        self.assertEqual(output[: OSIZE // 2 + len(ELIDED)], begin + ELIDED)
        end = output[OSIZE // 2 + len(ELIDED) :]
        self.assertEqual(len(end), OSIZE // 2)
        self.assertIn(end, again * OSIZE)

    def test_6_a_fork_bomb(self):
        feedback = self.feedback("6")
        self.assertRegex(feedback.split(b"\n")[0], rb"^Autodriver: Job (timed out after 5 seconds|exited with status \d+)$")
        self.assertIn(b"\nbomb\n", feedback)

    def test_7_a_job_that_eats_memory(self):
        expected = "Autodriver: The job was ended: memory-limit\neating\n"
        self.assertEqual(self.feedback("7"), exited(137, expected))

    def test_8_output_without_lines(self):
        expected = "bash hello.sh\nAny text 0Any text 1Any text 2Any text 3"
        self.assertEqual(self.feedback("8"), exited(0, expected))

    def test_9_a_python_job_that_takes_too_long(self):
        feedback = self.feedback("9").decode()
        self.assertTrue(feedback.startswith("Autodriver: Job timed out after 4 seconds\npython3 hello.py\n"), feedback)
        lines = feedback.splitlines()[2:]
        self.assertEqual(lines, ["sleeping %d" % i for i in range(len(lines))])
        self.assertTrue(2 <= len(lines) <= 5, lines)

    def test_10_a_job_that_is_looked_at_half_way(self):
        lines = ["Hello %d times" % i for i in range(1, 7)]
        self.assertEqual(self.feedback("10"), exited(0, "bash hello.sh\n" + "".join(line + "\n" for line in lines)))
        seen = self.ended["10"][1]
        self.assertTrue(seen and re.fullmatch(b"bash hello.sh\n(Hello [1-5] times\n)+", seen), seen)


if __name__ == "__main__":
    result = unittest.main(argv=sys.argv[:1], exit=False, verbosity=2).result
    bad = len(result.failures) + len(result.errors) + len(result.skipped)
    print("%d passed, %d failed" % (result.testsRun - bad, bad))
    sys.exit(bad != 0)
