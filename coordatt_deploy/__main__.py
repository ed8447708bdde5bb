"""``python -m coordatt_deploy`` is ``coordatt-deploy``."""

from coordatt_deploy.cli import main

main()
