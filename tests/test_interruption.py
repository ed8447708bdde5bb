"""Signals that end a command."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from coordatt_deploy import interruption
from coordatt_deploy.interruption import Terminated, handled, undisturbed


@pytest.fixture(autouse=True)
def nothing_ignored():
    """As in a terminal: what runs in the background, or under nohup, ignores some of them, and its children do."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated), (signal.SIGHUP, Terminated)],
)
def test_a_signal_runs_every_finally(number, error):
    """
    It arrives as an exception, and its number is known afterwards.
    """
    left = []
    with handled():
        with pytest.raises(error):
            try:
                send(number)
            finally:
                left.append(number)
        assert number == interruption.received()
    assert [number] == left


def test_a_native_module_that_is_being_loaded_is_loaded_first():
    """
    The signal arrives in what ONNX's C++ calls while it is loaded, where an exception would be the end by a signal.
    """
    program = """
        import enum, os, signal
        from coordatt_deploy.interruption import Terminated, handled

        make = enum.EnumType.__call__
        def made(*arguments, **keywords):
            enum.EnumType.__call__ = make
            os.kill(os.getpid(), signal.SIGTERM)
            return make(*arguments, **keywords)

        import google.protobuf.message, ml_dtypes, numpy, typing_extensions  # what it needs besides
        import importlib.machinery as machinery
        load = machinery.ExtensionFileLoader.exec_module
        def loaded(self, module):
            if module.__name__ == "onnx.onnx_cpp2py_export":
                enum.EnumType.__call__ = made
            load(self, module)
            if module.__name__ == "onnx.onnx_cpp2py_export":
                assert enum.EnumType.__call__ is make, "nothing was sent"
                print("loaded", flush=True)
        machinery.ExtensionFileLoader.exec_module = loaded
        try:
            with handled():
                import onnx
                import time; time.sleep(5)
                print("was not ended")
        except Terminated:
            print("ended")
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=False, capture_output=True, text=True, timeout=60
    )

    assert (0, "loaded\nended\n") == (done.returncode, done.stdout), done.stderr


def test_a_signal_that_still_waits_at_the_end_is_raised_there(monkeypatch):
    """
    Nothing is lost between the last module and the end of the block, and no timer is left behind.
    """
    monkeypatch.setattr(interruption, "_loads_native_code", lambda _: True)
    before = signal.getsignal(signal.SIGALRM)

    with pytest.raises(Terminated), handled():
        send(signal.SIGTERM)

    assert before is signal.getsignal(signal.SIGALRM)
    assert (0.0, 0.0) == signal.getitimer(signal.ITIMER_REAL)


def test_what_was_set_before_is_set_again():
    """
    Also what was ignored stays ignored: a command in the background of a script, or under nohup.
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled():
            send(signal.SIGHUP)
            assert interruption.received() is None
        assert signal.SIG_IGN is signal.getsignal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_must_not_be_torn_is_finished_first():
    """
    However deep such blocks lie in one another.
    """
    done = []
    with handled(), pytest.raises(Terminated):
        with undisturbed():
            with undisturbed():
                send(signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("never")

    assert ["inner", "outer"] == done


def test_an_error_in_such_a_block_gives_way_to_the_signal():
    """
    And nothing is held back after it.
    """
    with handled(), pytest.raises(Terminated), undisturbed():
        send(signal.SIGTERM)
        raise ValueError("torn")
    with handled(), pytest.raises(Terminated):
        send(signal.SIGTERM)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "Interrupted; nothing was left half written"),
        (signal.SIGTERM, 143, "Ended by SIGTERM; nothing was left half written"),
        (signal.SIGHUP, 129, "Ended by SIGHUP; nothing was left half written"),
    ],
)
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_command_that_is_ended_says_so_in_one_line(number, code, said, swallowed):
    """
    Also where a library makes an error of its own of what arrived in the midst of it.
    """
    script = textwrap.dedent(f"""
        import os, signal
        import coordatt_deploy.commands.models as models
        from coordatt_deploy.cli import main
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def card(_):
            try:
                os.kill(os.getpid(), {int(number)})
            except BaseException:
                if {swallowed}:
                    raise RuntimeError("returned a result with an exception set")
                raise
        models.model_card = card
        main(["models"])
    """)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert code == result.returncode
    assert said == result.stderr.strip()
    assert "" == result.stdout
