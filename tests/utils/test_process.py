import gc
import subprocess
import sys

import pytest

from ovml.cli.main import main
from ovml.utils.process import starting

PROGRAM = """
import atexit, sys, threading
from ovml.utils.process import end_at_once

class Loud:
    def __del__(self):
        print("taken apart")

kept = Loud()
started = threading.Event()
def wait_and_print():
    started.wait()
    print("thread")

threading.Thread(target=wait_and_print).start()
atexit.register(print, "first")
atexit.register(print, "second")
print("results", end=";")
end_at_once(3)
started.set()
sys.exit(3)
"""


def test_a_process_ends_with_its_code_after_its_output_threads_and_exit_functions():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stdout.replace(";", "\n").split() == ["results", "thread", "second", "first"]
    assert done.stderr == ""


def test_garbage_is_collected_again_after_the_start():
    assert gc.isenabled()
    with starting():
        assert not gc.isenabled()
        with starting():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), starting():
        raise KeyError
    assert gc.isenabled()


def test_a_caller_of_the_command_line_goes_on_and_collects_all(capsys):
    with starting():
        pass
    assert gc.get_freeze_count()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ovml ")
    assert not gc.get_freeze_count()
