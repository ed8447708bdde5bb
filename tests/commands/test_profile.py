import pytest


def test_no_bundle_at_all(run):
    """
    Exit 2, and how to make one.
    """
    result = run("profile", "nowhere")

    assert 2 == result.exit_code
    assert "coordatt-deploy build" in result.output


@pytest.mark.parametrize("threads", ["0", "1,x", "-1", "4096"])
def test_bad_thread_counts(run, threads):
    """
    Exit 2 before anything is opened.
    """
    result = run("profile", "nowhere", "--threads", threads)

    assert 2 == result.exit_code
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--threads", "1"), "--threads is for latency"),
        (("--min-seconds", "0.5"), "--min-seconds is for latency"),
        (("--cpu-affinity", "0"), "--cpu-affinity is for latency"),
    ],
)
def test_what_is_for_latency_means_nothing_for_instructions(run, arguments, said):
    """
    Exit 2, by the option's name.
    """
    result = run("profile", "nowhere", "--target", "qemu-arm64", *arguments)

    assert 2 == result.exit_code
    assert said in result.output
