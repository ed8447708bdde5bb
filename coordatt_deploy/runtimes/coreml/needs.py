"""What a Core ML package needs: the systems that read its version of the specification."""

from typing import Final

from coordatt_deploy.runtime_versions import RuntimeNeeds

# By version of the specification, the first iOS and macOS that read it (coremltools' documentation of target versions;
# 6 is the first with ML Programs).
SYSTEMS: Final = {6: ("15", "12"), 7: ("16", "13"), 8: ("17", "14"), 9: ("18", "15"), 10: ("26", "26")}


def runtime_needs(specification: int) -> RuntimeNeeds:
    """Return what a package of this version of the specification needs."""
    systems = SYSTEMS.get(max(specification, min(SYSTEMS)))
    least = {} if systems is None else {"ios": systems[0], "macos": systems[1]}
    return RuntimeNeeds(least, f"version {specification} of the specification", {"specification": specification})
