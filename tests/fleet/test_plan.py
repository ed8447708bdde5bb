"""Which places there are, as users write it."""

import pytest

from coordatt_deploy.errors import UsageError
from coordatt_deploy.fleet.plan import Fleet, FleetHost, fleet_of, read_fleet

FILE = """
at_once = 2

[hosts.pi4]
address = "ssh://ann@pi4.local:2222"
cpu = "cortex-a72"
tool = "~/venv/bin/coordatt-deploy"
folder = "/srv/nets"
groups = ["pilot"]

[hosts.workstation]
address = "here"

[hosts.emulated]
address = "qemu-arm64"

[groups]
pilot = ["workstation"]
all-arm = ["pi4", "emulated"]
"""


def written(tmp_path, text):
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return path


def test_file_of_places_is_read(tmp_path):
    """
    Hosts, their groups said in either place, and how many work at once.
    """
    fleet = read_fleet(written(tmp_path, FILE))
    assert fleet == Fleet(
        (
            FleetHost(
                "pi4",
                "ssh://ann@pi4.local:2222",
                "cortex-a72",
                "~/venv/bin/coordatt-deploy",
                ("pilot", "all-arm"),
                "/srv/nets",
            ),
            FleetHost("workstation", "here", groups=("pilot",)),
            FleetHost("emulated", "qemu-arm64:neoverse-n1", groups=("all-arm",)),
        ),
        2,
    )
    assert ["pi4", "workstation"] == [host.name for host in fleet.group("pilot")]
    assert fleet.hosts == fleet.group(None)
    with pytest.raises(UsageError, match="did you mean pilot"):
        fleet.group("pilto")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("at_once = 2", "at_one = 2", r"line 2: unknown key 'at_one'; did you mean at_once"),
        ("at_once = 2", "at_once = 0", "write a number from 1 to 64"),
        ("at_once = 2", "at_once = true", "write a number from 1 to 64"),
        ("cpu =", "cpus =", r"\[hosts.pi4\]: unknown key 'cpus'; did you mean cpu"),
        ('"cortex-a72"', "72", "cpu is 72; write a text"),
        ('"cortex-a72"', r'"\u001b[2J"', "write a text"),
        ("ssh://ann@pi4", "ssh://-oProxyCommand=x", "is no name of a machine"),
        ("ssh://ann", "telnet://ann", "no place is reached by 'telnet'; known: ssh"),
        ('"here"', '"her"', "unknown target 'her'"),
        ('address = "here"', "", r"\[hosts.workstation\] has no address"),
        ("hosts.workstation", "hosts.here", "is no name for a place"),
        ("hosts.workstation", 'hosts."../x"', "is no name for a place"),
        ("hosts.workstation", "hosts.qemu-arm64-neoverse-n1", "is no name for a place"),
        ('pilot = ["workstation"]', 'pilot = ["workstatio"]', "which is no host; did you mean workstation"),
        ('["pilot"]', '"pilot"', "write a list of names"),
        ("[groups]", "[group]", "unknown key 'group'; did you mean groups"),
    ],
)
def test_mistake_is_told_with_its_place(tmp_path, old, new, told):
    """
    What a file has too much, too little or wrong is refused, with where it is and what was meant.
    """
    assert old in FILE
    with pytest.raises(UsageError, match=told):
        read_fleet(written(tmp_path, FILE.replace(old, new)))


def test_empty_file_is_refused(tmp_path):
    """
    A file without places is no fleet.
    """
    with pytest.raises(UsageError, match="names no place"):
        read_fleet(written(tmp_path, ""))


def test_targets_of_the_command_line():
    """
    Places get names by themselves; two of one name are refused, as a report could not tell them apart.
    """
    fleet = fleet_of(["here", "ssh://ann@Pi4.local:22", "qemu-arm64"])
    assert ["here", "pi4.local-22", "qemu-arm64:neoverse-n1"] == [host.name for host in fleet.hosts]
    with pytest.raises(UsageError, match="would both be called pi"):
        fleet_of(["ssh://ann@pi", "ssh://bob@pi"])
    for address in ("ssh://here", "ssh://_", "ssh://qemu-arm64"):
        with pytest.raises(UsageError, match="is no name for another machine; give it one in a file"):
            fleet_of([address])
    with pytest.raises(UsageError, match="here is named 2 times; name each place once"):
        fleet_of(["here", "here"])
