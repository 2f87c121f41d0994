//! Harness: boots the ISO in QEMU.
