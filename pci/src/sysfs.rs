//! PCI functions as sysfs shows them.
