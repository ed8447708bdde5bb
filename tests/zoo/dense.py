"""SSDLite, DeepLabV3 and LR-ASPP with coordinate attention, narrow enough for a test."""

from dataclasses import replace

from coordatt_deploy.loading.fresh_statistics import initialise_batchnorm_statistics
from coordatt_deploy.models import model_card
from coordatt_deploy.models.factory import build
from coordatt_deploy.models.registry import chosen_switches


def _narrow(name, classes, **choices):
    card = replace(model_card(name), width=0.35)
    switches, _ = chosen_switches(card, choices)
    network = build(card, card.attended, num_classes=classes, switches=switches)
    initialise_batchnorm_statistics(network)
    return network


def ssdlite(decode=False):
    return _narrow("ssdlite320_mobilenetv2_ca_100", 5, decode=decode)


def deeplabv3():
    return _narrow("deeplabv3_mobilenetv2_ca_100", 5)


def lraspp():
    return _narrow("lraspp_mobilenetv2_ca_100", 5)
