//! QEMU qtest.
