//! The kernel's VFIO.
