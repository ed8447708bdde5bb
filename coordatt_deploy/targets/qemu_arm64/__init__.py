"""Emulated ARM64: a sysroot of packages, run by QEMU."""
