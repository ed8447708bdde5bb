"""A machine that ssh reaches, as a place that commands are run at."""

from coordatt_deploy.targets.places import PlaceName
from coordatt_deploy.targets.ssh.address import parse_address


def name_of(text: str) -> PlaceName:
    """See ``places.PlaceModule``."""
    address = parse_address(text)
    return PlaceName(str(address), address.place)
