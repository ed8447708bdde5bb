from pathlib import Path

from coordatt_deploy.targets.qemu_arm64 import apt

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def test_one_line_sources_are_read():
    """
    Options, comments, sources for source code, and lines that are switched off.
    """
    text = (
        "# deb http://off.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib # remark\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "\n"
        "deb http://mirror.example/security bookworm-security main\n"
    )

    assert (
        apt.Source(("http://mirror.example/debian",), ("bookworm",), ("main", "contrib"), (("signed-by", "/k.gpg"),)),
        apt.Source(("http://mirror.example/security",), ("bookworm-security",), ("main",)),
    ) == apt.parse_list(text)


def test_deb822_sources_are_read():
    """
    Several suites, an embedded key over several lines, a stanza that is switched off, one for source code.
    """
    text = (
        "Types: deb deb-src\n"
        "# a remark in the middle\n"
        "URIs: http://mirror.example/debian\n"
        "Suites: bookworm bookworm-updates\n"
        "Components: main\n"
        "Architectures: amd64\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n"
        "\n"
        "Enabled: no\nTypes: deb\nURIs: http://off.example\nSuites: bookworm\nComponents: main\n"
        " \n"
        "Types: deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n"
    )

    (source,) = apt.parse_deb822(text)

    assert source.suites == ("bookworm", "bookworm-updates")
    assert source.options == (("Signed-By", "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF"),)
    assert (source,) == apt.parse_deb822(apt.sources_text((source,), ("amd64", "arm64")))


def test_only_debians_archive_is_taken_and_turned_to_the_release():
    """
    Updates and security stay what they are; other projects, backports and discs are left out.
    """

    def one(uri, *suites, components=("main",), key=""):
        return apt.Source((uri,), suites, components, (("Signed-By", key),) if key else ())

    sources = (
        one("http://mirror.example/debian", "trixie", "trixie-updates", "trixie-backports", key=KEYRING),
        one("http://mirror.example/security", "trixie-security"),
        one("http://old.example/debian-security", "buster/updates", "bullseye/updates"),
        one("http://node.example", "nodistro"),
        one("http://cloud.example", "cloud-sdk-bookworm"),
        one("http://docker.example", "bookworm", components=("stable",)),
        one("http://vendor.example", "bookworm", key="/usr/share/keyrings/vendor.gpg"),
        one("http://ubuntu.example/ubuntu", "noble"),
        one("cdrom:[Debian]/", "bookworm"),
        one("http://flat.example", "./"),
    )

    found = apt.debian_sources(sources, "bookworm")

    assert [(source.uris[0], source.suites) for source in found] == [
        ("http://mirror.example/debian", ("bookworm", "bookworm-updates")),
        ("http://mirror.example/security", ("bookworm-security",)),
        ("http://old.example/debian-security", ("bookworm-security",)),
    ]


def test_the_private_apt_writes_nowhere_else(tmp_path):
    """
    All folders are its own, the system's hooks and pinning stay out, its proxy comes along.
    """
    settings = (
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'DPkg::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb";',
        'APT::Update::Post-Invoke-Success:: "true";',
        'Dir::State "var/lib/apt";',
    )

    lines = apt.config_text(tmp_path, ("amd64", "arm64"), settings).splitlines()

    assert lines[0] == settings[0]
    assert not any("Invoke" in line or "var/lib/apt" in line for line in lines)
    assert f'Dir::State "{tmp_path}";' in lines
    assert 'Dir::Etc::parts "/dev/null";' in lines
    assert 'APT::Architectures { "amd64"; "arm64"; };' in lines


def test_this_systems_sources_or_the_users_own_file_are_found(tmp_path):
    """
    sources.list and both forms below sources.list.d; other files there are left alone.
    """
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.example/debian bookworm main\n")
    (tmp_path / "sources.list.d/b.list").write_text("deb http://b.example/debian bookworm main\n")
    (tmp_path / "sources.list.d/c.sources").write_text(
        "Types: deb\nURIs: http://c.example/debian\nSuites: bookworm\nComponents: main\n"
    )
    (tmp_path / "sources.list.d/d.sources.off").write_text("Types: deb\nURIs: http://d.example\n")

    uris = [source.uris[0] for source in apt.read_sources(tmp_path)]

    assert uris == ["http://a.example/debian", "http://b.example/debian", "http://c.example/debian"]


def test_package_files_tell_their_version():
    """
    apt escapes the epoch's colon.
    """
    assert ("qemu-user", "1:7.2+dfsg-7+deb12u18+b3", "amd64") == apt.deb_version(
        Path("qemu-user_1%3a7.2+dfsg-7+deb12u18+b3_amd64.deb")
    )
